"""Deadlines and clocks that jump, across starts.

No key expires early or late while the daemon runs. A start gives no key more time than it had when it was written, and
brings no expired key back.
"""

import random

import pytest

from kvd.engine.database import Database
from kvd.journal.disk import Disk
from kvd.store.authors import EXPIRED
from kvd.store.history import versions
from kvd.store.window import WindowLimits
from tests.harness.scale import SCALE
from tests.journal.disks import MemoryDisk
from tests.journal.running import ME, WALL_US, Running

SECOND, HOUR, YEAR = 10**6, 3600 * 10**6, 365 * 24 * 3600 * 10**6
JUMPS = max(200, int(200 * SCALE))


class Machine:
    """A daemon that can be started again, on a machine whose wall clock is set freely."""

    def __init__(self) -> None:
        self.limits = WindowLimits()
        self.even, self.wall = 0, WALL_US
        self.disk: Disk = MemoryDisk({})
        self.running = self.started()

    def started(self) -> Running:
        return Running(self.disk, limits=self.limits, now=lambda: self.even, wall=lambda: self.wall)

    @property
    def database(self) -> Database:
        self.running.database.expire_all_due()
        return self.running.database

    def pass_(self, us: int) -> None:
        self.even += us
        self.wall += us

    def set(self, key: str, ttl_us: int) -> None:
        self.running.set({key: b"x"}, self.database.expiry(ttl_us, keep=False, owner=None))

    def left(self, key: str) -> int | None:
        """Return the remaining TTL of ``key``; None if it does not exist."""
        database = self.database
        return database.time_to_live_us(key) if database.store.exists(key) else None

    def checkpoint_alone(self) -> None:
        """Write a checkpoint, and remove what came before it."""
        self.running.database.store.window.limits = self.limits = WindowLimits(max_commits=0)
        self.running.database.store.drop_history(10**6)
        self.running.checkpoint()
        assert self.running.remove_superseded()
        self.limits = WindowLimits()

    def start_again(self, down_us: int = 0, jump_us: int = 0) -> None:
        """Start as after a crash: what was written is there."""
        self.running.write()
        self.disk = MemoryDisk(self.disk.contents())  # type: ignore[attr-defined]
        self.pass_(down_us)
        self.wall += jump_us
        self.running = self.started()


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.mark.parametrize("checkpoint", [False, True], ids=["out of the log", "out of a checkpoint"])
def test_time_that_passes_while_the_daemon_is_down_counts(machine: Machine, checkpoint: bool) -> None:
    machine.set("a", 10 * SECOND)
    machine.set("b", 3 * SECOND)
    if checkpoint:
        machine.checkpoint_alone()
    machine.pass_(SECOND)
    machine.start_again(down_us=2 * SECOND)
    assert (machine.left("a"), machine.left("b")) == (7 * SECOND, None)
    newest = versions(machine.database.store, "b", 1, None, 10**6)[0]
    assert (newest.value, newest.author) == (None, EXPIRED)
    machine.pass_(7 * SECOND - 1)
    assert machine.left("a") == 1
    machine.pass_(1)
    assert machine.left("a") is None
    machine.start_again()
    assert machine.left("a") is None


@pytest.mark.parametrize("checkpoint", [False, True], ids=["out of the log", "out of a checkpoint"])
@pytest.mark.parametrize("back_us", [SECOND, HOUR, 10 * YEAR])
def test_a_key_written_after_the_clock_was_set_back_survives_a_start(
    machine: Machine, back_us: int, checkpoint: bool
) -> None:
    """Commit times never go back, so after the clock was set back they do not say how long a key had to live."""
    machine.set("before", HOUR)
    machine.wall -= back_us
    machine.set("a", SECOND // 2)
    if checkpoint:
        machine.checkpoint_alone()
    machine.pass_(SECOND // 10)
    machine.start_again()
    assert machine.left("a") == SECOND * 4 // 10


@pytest.mark.parametrize("checkpoint", [False, True], ids=["out of the log", "out of a checkpoint"])
@pytest.mark.parametrize("jump_us", [-SECOND, -HOUR, -10 * YEAR, SECOND, HOUR, 10 * YEAR])
def test_a_jump_while_the_daemon_is_down_gives_no_key_more_time_than_it_had(
    machine: Machine, jump_us: int, checkpoint: bool
) -> None:
    machine.set("a", HOUR)
    if checkpoint:
        machine.checkpoint_alone()
    machine.start_again(down_us=10, jump_us=jump_us)
    left = machine.left("a") or 0
    assert left == max(0, min(HOUR, HOUR - 10 - jump_us))


def test_many_jumps_and_starts() -> None:
    """``deadline``, by the even clock, is the true one; ``written`` is what a start knows: wall deadline and bound."""
    chosen, machine = random.Random(26), Machine()  # noqa: S311  # to be repeatable
    deadline: dict[str, int] = {}
    written: dict[str, set[tuple[int, int]]] = {}
    jumps = starts = expired = 0
    while jumps < JUMPS:
        key = chosen.choice("abcdefgh")
        match chosen.choice(["set", "set", "touch", "pass", "pass", "jump", "jump", "start", "checkpoint"]):
            case "set" | "touch" as what:
                ttl = chosen.choice([SECOND, HOUR, YEAR]) + chosen.randrange(SECOND)
                if what == "set":
                    machine.set(key, ttl)
                elif not any(machine.database.touch([key], ttl, ME)):
                    continue
                deadline[key] = machine.even + ttl
                written[key] = {(machine.wall + ttl, ttl)}
            case "pass":
                machine.pass_(chosen.choice([1, SECOND // 3, SECOND, HOUR // 3]))
            case "jump":
                machine.wall += chosen.choice([-1, 1]) * chosen.choice([SECOND, HOUR, 10 * YEAR])
                jumps += 1
            case "checkpoint":
                machine.running.checkpoint()
                for each in deadline:
                    left = deadline[each] - machine.even
                    written[each].add((machine.wall + left, left))
            case "start":
                jump = chosen.choice([0, 0, -SECOND, SECOND, -HOUR, HOUR, -10 * YEAR])
                down = chosen.randrange(SECOND)
                machine.start_again(down, jump)
                starts += 1
                for each in list(deadline):
                    ends = {max(0, min(bound, end - machine.wall)) for end, bound in written[each]}
                    left = machine.left(each) or 0
                    assert left in ends
                    deadline[each] = machine.even + left
        for each in list(deadline):
            left = machine.left(each) or 0
            assert left == max(0, deadline[each] - machine.even), "not early, and not late"
            if not left:
                del deadline[each], written[each]
                expired += 1
    assert starts >= 20
    assert expired >= 50
