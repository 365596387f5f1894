"""The power fails at any moment of busy runs, and leaves the disk in any state that it may have then.

In each of them recovery succeeds; everything acknowledged is there; the store, its history and what is remembered of
ids are exactly as they were at some version; no version that was shown is given again; and what is committed then
survives the next recovery. KVD_TEST_SCALE multiplies the number of runs.
"""

import random
from itertools import islice
from typing import NamedTuple

from kvd.engine.replay import Replay
from kvd.journal.recovery import recover
from tests.harness.scale import SCALE
from tests.journal.busy import STEPS, Busy, differences
from tests.journal.crashes import Contents, Crash, RecordingDisk, crashes
from tests.journal.disks import MemoryDisk
from tests.journal.running import BOOT_US, WALL_US, Running, items, recovered

RUNS = max(1, round(3 * SCALE))
MIN_STATES = 15_000
MIN_DIFFERENT = 3_000
STEPS_OF_A_RUN = 45
GENERATIONS = 3


class Verdict(NamedTuple):
    """The result of a recovery."""

    problem: str | None
    version: int = 0
    next: int = 0
    oldest: int = 0


class Judge:
    """Checks states, each of them once."""

    def __init__(self, busy: Busy, *, every: int = 5) -> None:
        self.model = busy.model
        self.now = busy.now
        self.limits = busy.limits
        self.every = every
        self.seen: dict[int, Verdict] = {}
        self.states = 0

    def problem(self, state: Contents, facts: dict[str, int], kind: str) -> str | None:
        """Return what is wrong with a state; None if nothing is."""
        self.states += 1
        key = hash(tuple(sorted(state.items())))
        verdict = self.seen.get(key)
        if verdict is None:
            verdict = self.seen[key] = self._recovered(state)
        if verdict.problem is not None:
            return verdict.problem
        must = facts.get("written" if kind == "all" else "synced", 0)
        if verdict.version < must:
            return f"version {must} was acknowledged, and {verdict.version} is there"
        if verdict.next <= facts.get("shown", 0):
            return f"version {facts['shown']} was shown, and the next is {verdict.next}"
        if verdict.oldest > facts.get("oldest", 0):
            return f"versions from {facts['oldest']} on could be read, and now from {verdict.oldest} on"
        return None

    def _recovered(self, state: Contents) -> Verdict:
        try:
            database, found = recovered(
                MemoryDisk(state), self.limits, lambda: WALL_US + self.now, lambda: 2 * BOOT_US + self.now
            )
            problem = differences(database, found.version, self.model, self.now)
            if problem is None and len(self.seen) % self.every == 0:
                problem = self._goes_on(state, found.version)
        except Exception as error:
            return Verdict(f"{type(error).__name__}: {error}")
        oldest = database.store.window.oldest_readable
        return Verdict(problem, found.version, database.store.version + 1, oldest)

    def _goes_on(self, state: Contents, version: int) -> str | None:
        """Check that a second start finds the same, and that what is written then survives."""
        Running(disk := MemoryDisk(state), limits=self.limits, segment_bytes=1024)
        running = Running(disk, limits=self.limits, segment_bytes=1024, seed=2)
        orphans = {key for key, now in self.model.at[version].items() if now.owner is not None}
        if items(running.database).keys() != self.model.at[version].keys() - orphans:
            return "the second start found something else"
        running.set({"new": b"x" * 300}, id_=b"i" * 16)
        running.write()
        again = Running(MemoryDisk(disk.contents()), limits=self.limits, segment_bytes=1024)
        is_known = again.database.outcomes.lookup(1000, b"i" * 16, None, 0) is not None
        if items(again.database) != items(running.database) or not is_known:
            return "what was written after it did not survive"
        return None


def run_of(seed: int, steps: int = STEPS_OF_A_RUN) -> Busy:
    busy = Busy(RecordingDisk(), seed)
    while sum(busy.did.values()) < steps:
        busy.step()
    return busy


def problems(busy: Busy, judge: Judge, chance: random.Random) -> list[str]:
    """Return all faults in any state that a crash of this run may leave."""
    found = []
    for crash in crashes(busy.disk):
        for kind, state in crash.states(chance):
            problem = judge.problem(state, crash.facts, kind)
            if problem is not None:
                found.append(f"{kind}: {problem}")
    return found


def some_crash(busy: Busy, chance: random.Random) -> tuple[Crash, Contents]:
    """Return a crash in the second half of a run, and the state that it left."""
    operations = sum(op[0] != "say" for op in busy.disk.trace)
    crash = next(islice(crashes(busy.disk), chance.randrange(operations // 2, operations), None))
    return crash, chance.choice(list(crash.states(chance)))[1]


def next_generation(busy: Busy, chance: random.Random, seed: int) -> Busy:
    """Return a run that goes on from a crash in another run."""
    crash, state = some_crash(busy, chance)
    version = recover(MemoryDisk(state), Replay()).version
    disk = RecordingDisk(state, {**crash.facts, "synced": version, "written": version})
    following = Busy(disk, seed, model=busy.model, now=busy.now)
    while sum(following.did.values()) < STEPS_OF_A_RUN // 3:
        following.step()
    return following


def test_no_power_cut_loses_what_was_acknowledged() -> None:
    """Each run goes on from one of its crashes, and crashes again, in its recovery, too."""
    states = different = 0
    did: dict[str, int] = {}
    for seed in range(RUNS):
        chance = random.Random(seed)  # noqa: S311 - a test that can be repeated
        busy = run_of(seed)
        for generation in range(1, GENERATIONS + 1):
            judge = Judge(busy)
            assert problems(busy, judge, chance) == []
            states, different = states + judge.states, different + len(judge.seen)
            did = {name: did.get(name, 0) + busy.did.get(name, 0) for name in {*did, *busy.did}}
            busy = next_generation(busy, chance, seed + 1000 * generation)
    print(f"{RUNS} runs, {states} states, {different} of them different; {did}")
    assert states >= MIN_STATES * SCALE
    assert different >= MIN_DIFFERENT * SCALE
    assert len(did.keys() & STEPS.keys()) >= len(STEPS) - 2
    assert did["finished"]
    assert did["removed"]
