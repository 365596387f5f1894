"""The near cache as a model: everything that a server, its successor, a writer and a reader can do, in any order.

One key, whose values are rising numbers. Time is counted in heartbeats; the state has only what remains of a lease or
of the fence. A step may take any time, so a process that is held up, stopped or killed is one whose next step does not
come. A read is correct if it returns nothing older than any call had returned when the read began. ``floor`` is that
value, so this is linearizability of a register with one writer.

    ""               what the code does
    BROKEN           variants, each of which leaves one thing out or does it too late; ``explore`` finds a stale read
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

from kvd.protocol.near_cache import CLOCK_TICK_MS, HEARTBEAT_MS, LEASE_MS

LEASE = LEASE_MS // HEARTBEAT_MS
FENCE = -(-(LEASE_MS + CLOCK_TICK_MS) // HEARTBEAT_MS)
WRITES = 2

S = TypeVar("S")

BROKEN = (
    "bumps after the reply",
    "bumps when the value can be read already",
    "sends the generation of the next change",
    "samples the generation when the reply has come",
    "replies before the commit is durable",
    "compares no generation",
    "checks no lease",
    "has no fence",
    "fences writes only",
    "fences for too short a time",
    "attaches before the file is written",
    "removes the file before the lease ends",
    "stops without ending the lease",
    "beats once more after the last reply",
    "keeps entries across a reconnection",
)


class State(NamedTuple):
    """``old`` and ``new`` are the two servers; ``table`` names the server whose words the client has mapped."""

    # serving, ending (in order), dead, ended; then waiting (for the fence), and new: the successor serves.
    server: str = "serving"
    stopped: int = 0  # how many steps of an orderly stop are done
    dirty: bool = False
    # How much remains of each, in heartbeats.
    lease: int = 0
    new_lease: int = 0
    fence: int = 0
    generation: int = 0
    new_generation: int = 0
    # The store: the last number issued, the values in memory and on the disk, and the newest that any call returned.
    issued: int = 0
    applied: int = 0
    durable: int = 0
    floor: int = 0
    writing: str = ""  # bumped, applied, synced: the last step of the commit under way
    late: bool = False  # the generation must still be bumped
    # The reader.
    table: str = ""  # old, new
    pending: bool = False  # attached before the file is written
    entry: tuple[int, int] | None = None  # value, generation
    step: str = "idle"
    begun: int = 0  # the floor when the read began
    entry_read: tuple[int, int] = (0, 0)  # the value and generation that the read has


Step = tuple[str, State]


class StaleRead(Exception):
    """A read has returned a value that was not current any more."""


def next_states(state: State, variant: str = "") -> Iterator[Step]:
    """Yield everything that can happen next. Raises StaleRead."""
    if state.lease or state.new_lease or state.fence:
        lease, new_lease, fence = (max(0, each - 1) for each in (state.lease, state.new_lease, state.fence))
        yield "time", state._replace(lease=lease, new_lease=new_lease, fence=fence)
    yield from _server(state, variant)
    yield from _writer(state, variant)
    if _serves(state, variant) and state.applied == state.durable:
        yield "another client reads", state._replace(floor=max(state.floor, state.applied))
    yield from _reader(state, variant)


# ---------------------------------------------------------------------- the server and its successor


def _serves(state: State, variant: str) -> bool:
    # The server has one thread: it serves no client between the bump and the change.
    if state.writing == "bumped":
        return False
    return state.server in ("serving", "new") or (state.server == "waiting" and variant == "fences writes only")


def _server(state: State, variant: str) -> Iterator[Step]:
    if state.server in ("serving", "ending") and state.table and (not state.stopped or "once more" in variant):
        yield "beat", state._replace(lease=LEASE)
    if state.server == "new" and state.table == "new":
        yield "beat", state._replace(new_lease=LEASE)
    if state.pending and state.server == "serving":
        yield "file written", state._replace(pending=False, dirty=True)
    if state.server in ("serving", "ending"):
        yield "killed", state._replace(server="dead", stopped=0, writing="", late=False)
    if state.server == "serving" and not state.writing and not state.late and state.applied == state.durable:
        yield "asked to stop", state._replace(server="ending")
    if state.server == "ending":
        yield from _stop(state, variant)
    if state.server in ("dead", "ended"):
        # A write that was not synced may survive or not: the page cache outlives the process. Or the key is gone, as
        # are all keys without a data directory, and ephemeral ones: that is one more change.
        gone = state.issued + 1
        for recovered in {state.applied, state.durable, gone}:
            again = state._replace(server="waiting", fence=_fence(state, variant), applied=recovered, durable=recovered)
            yield "started again", again._replace(issued=max(state.issued, recovered))
    if state.server == "waiting" and not state.fence:
        yield "serves again", state._replace(server="new", dirty=False)


def _stop(state: State, variant: str) -> Iterator[Step]:
    end_lease = state._replace(lease=0, stopped=state.stopped + 1)
    remove = state._replace(dirty=False, stopped=state.stopped + 1)
    steps = [end_lease, remove]
    if variant == "removes the file before the lease ends":
        steps = [remove, end_lease]
    if variant == "stops without ending the lease":
        steps = [remove._replace(stopped=2)]
    if state.stopped < len(steps):
        yield "stops", steps[state.stopped]
    else:
        yield "lock released", state._replace(server="ended")


def _fence(state: State, variant: str) -> int:
    if not state.dirty or variant == "has no fence":
        return 0
    return LEASE - 1 if variant == "fences for too short a time" else FENCE


# ---------------------------------------------------------------------- the writer


def _bump(state: State) -> State:
    if state.server == "serving":
        return state._replace(generation=state.generation + 1, late=False)
    return state._replace(new_generation=state.new_generation + 1, late=False)


def _writer(state: State, variant: str) -> Iterator[Step]:
    if state.server not in ("serving", "new"):
        return
    late = variant in ("bumps after the reply", "bumps when the value can be read already")
    if not state.writing and not state.late and state.issued < WRITES:
        yield "bumped", (state._replace(late=True) if late else _bump(state))._replace(writing="bumped")
    elif state.writing == "bumped":
        yield "applied", state._replace(writing="applied", issued=state.issued + 1, applied=state.issued + 1)
    elif state.writing == "applied":
        yield "synced", state._replace(writing="synced", durable=state.applied)
        if variant == "replies before the commit is durable":
            yield "acknowledged", state._replace(floor=state.applied)
    elif state.writing == "synced":
        ready = state if variant != "bumps when the value can be read already" else _bump(state)
        yield "acknowledged", ready._replace(writing="", floor=max(state.floor, state.applied))
    if variant == "bumps after the reply" and state.late and not state.writing:
        yield "bumped at last", _bump(state)


# ---------------------------------------------------------------------- the reader


def _words(state: State) -> tuple[int, int]:
    """Return the generation and the lease in the words that the client has mapped."""
    if state.table == "old":
        return state.generation, state.lease
    return state.new_generation, state.new_lease


def _reader(state: State, variant: str) -> Iterator[Step]:
    generation, lease = _words(state)
    if state.step == "idle":
        yield "begins", state._replace(step="begun", begun=state.floor)
    elif state.step == "begun":
        if state.entry is None or not state.table:
            yield "has no entry", state._replace(step="fetches")
        else:
            yield "looks up", state._replace(step="found", entry_read=state.entry)
    elif state.step == "found":
        same = generation == state.entry_read[1] or variant == "compares no generation"
        yield "compares", state._replace(step="compared" if same else "fetches")
    elif state.step == "compared":
        trusts = lease > 0 or variant == "checks no lease"
        yield ("answers from the cache", _returned(state)) if trusts else ("lease over", state._replace(step="fetches"))
    elif state.step == "fetches":
        yield from _fetch(state, variant)
    elif state.step == "reply pending":
        # The server holds the reply back until the value in it is on the disk.
        if state.server in ("dead", "ended"):
            yield "connection lost", state._replace(step="fetches")
        elif state.durable >= state.entry_read[0] or variant == "replies before the commit is durable":
            yield "reply sent", state._replace(step="reply sent")
    elif state.step == "reply sent":
        kept = generation if variant == "samples the generation when the reply has come" else state.entry_read[1]
        yield "receives the reply", _returned(state._replace(entry=(state.entry_read[0], kept)))


def _fetch(state: State, variant: str) -> Iterator[Step]:
    """Attach, if the client is not attached to the server that serves now, and fetch."""
    now = {"serving": "old", "new": "new", "waiting": "new"}.get(state.server, "")
    if not _serves(state, variant):
        return
    if state.table == now:
        generation = _words(state)[0]
        if variant == "sends the generation of the next change":
            generation += 1
        yield "fetched", state._replace(step="reply pending", entry_read=(state.applied, generation))
        return
    kept = state.entry if variant == "keeps entries across a reconnection" else None
    attached = state._replace(table=now, entry=kept)
    if now == "new":
        yield "attached again", attached._replace(new_lease=LEASE, step="begun" if kept else "fetches")
    elif variant == "attaches before the file is written":
        yield "attached", attached._replace(lease=LEASE, pending=True)
    else:
        yield "attached", attached._replace(lease=LEASE, dirty=True)


def _returned(state: State) -> State:
    value = state.entry_read[0]
    if value < state.begun:
        raise StaleRead(f"{value} was read although {state.begun} had been seen before")
    return state._replace(step="idle", begun=0, entry_read=(0, 0), floor=max(state.floor, value))


# ---------------------------------------------------------------------- exploring all states


def explore(begin: S, follow: Callable[[S, str], Iterator[tuple[str, S]]], variant: str) -> tuple[int, list[str]]:
    """Return how many states can be reached, and the steps to the first stale read; no steps if there is none."""
    before: dict[S, tuple[str, S | None]] = {begin: ("", None)}
    level = [begin]
    while level:
        reached = []
        for state in level:
            try:
                for label, successor in follow(state, variant):
                    if successor not in before:
                        before[successor] = label, state
                        reached.append(successor)
            except StaleRead as stale:
                return len(before), [*_path(before, state), str(stale)]
        level = reached
    return len(before), []


def _path(before: dict[S, tuple[str, S | None]], state: S | None) -> list[str]:
    labels = []
    while state is not None:
        label, state = before[state]
        labels.append(label)
    return labels[::-1][1:]
