"""The near cache as a model: everything that a server, its successor, a writer and a reader can do, in any order.

One key. Its values are numbers that rise. Time is counted in heartbeats, and only what is left of a lease or of the
fence is kept; a step may take as long as it likes, so whoever is held up, stopped or killed is just one who does not do
his next step. A read is right if it returns nothing older than
what any call had returned when it began: ``floor`` is that, so this is linearizability of a register with one writer.

    correct          what the code does
    BROKEN           each leaves one thing out, or does it too late; ``explore`` finds what comes of it
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

from kvd.protocol.near_cache import CLOCK_TICK_MS, HEARTBEAT_MS, LEASE_MS

LEASE = LEASE_MS // HEARTBEAT_MS
FENCE = -(-(LEASE_MS + CLOCK_TICK_MS) // HEARTBEAT_MS)
WRITES = 2

S = TypeVar("S")

BROKEN = (
    "raises behind the answer",
    "raises when it can be read already",
    "tells the generation that comes with the next change",
    "samples the generation when the answer has come",
    "answers before it is durable",
    "looks at no generation",
    "looks at no lease",
    "has no fence",
    "fences writes only",
    "fences too briefly",
    "attaches before the file is written",
    "removes the file before the lease ends",
    "stops without ending the lease",
    "beats once more after the last reply",
    "keeps entries over a reconnection",
)


class State(NamedTuple):
    """``old`` and ``new`` are the two servers, ``table`` is whose words the client has mapped."""

    # serving, ending (in order), dead, ended; then waiting (behind the fence) and serving again, as the new one.
    server: str = "serving"
    stopped: int = 0  # steps of an orderly stop that are done
    dirty: bool = False
    # What is left of them, in heartbeats.
    lease: int = 0
    new_lease: int = 0
    fence: int = 0
    generation: int = 0
    new_generation: int = 0
    # The store: the last number given, what is in memory, what is on the disk, what somebody has seen.
    issued: int = 0
    applied: int = 0
    durable: int = 0
    floor: int = 0
    writing: str = ""  # raised, applied, synced: what was done last of the commit under way
    late: bool = False  # a generation has still to be raised
    # The reader.
    table: str = ""  # old, new
    pending: bool = False  # attached, and the file not yet written
    entry: tuple[int, int] | None = None  # value, generation
    step: str = "idle"
    begun: int = 0  # the floor when it began
    got: tuple[int, int] = (0, 0)


Step = tuple[str, State]


class Wrong(Exception):
    """A read has returned what was not current any more."""


def next_states(state: State, variant: str = "") -> Iterator[Step]:
    """Everything that can happen next. Raises Wrong."""
    if state.lease or state.new_lease or state.fence:
        left = [max(0, each - 1) for each in (state.lease, state.new_lease, state.fence)]
        yield "time", state._replace(lease=left[0], new_lease=left[1], fence=left[2])
    yield from _server(state, variant)
    yield from _writer(state, variant)
    if _serves(state, variant) and state.applied == state.durable:
        yield "somebody else reads", state._replace(floor=max(state.floor, state.applied))
    yield from _reader(state, variant)


# ---------------------------------------------------------------------- the server and its successor


def _serves(state: State, variant: str) -> bool:
    # One thread: nobody is served between the raise and the change.
    if state.writing == "raised":
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
        yield "told to stop", state._replace(server="ending")
    if state.server == "ending":
        yield from _stop(state, variant)
    if state.server in ("dead", "ended"):
        # What was written and not synced may be there or not: the page cache outlives the process. Or else the key has
        # gone, as everything has without a data directory, or what was ephemeral: that is one change more.
        gone = state.issued + 1
        for found in {state.applied, state.durable, gone}:
            again = state._replace(server="waiting", fence=_fence(state, variant), applied=found, durable=found)
            yield "started again", again._replace(issued=max(state.issued, found))
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
    return LEASE - 1 if variant == "fences too briefly" else FENCE


# ---------------------------------------------------------------------- the writer


def _raise(state: State) -> State:
    if state.server == "serving":
        return state._replace(generation=state.generation + 1, late=False)
    return state._replace(new_generation=state.new_generation + 1, late=False)


def _writer(state: State, variant: str) -> Iterator[Step]:
    if state.server not in ("serving", "new"):
        return
    late = variant in ("raises behind the answer", "raises when it can be read already")
    if not state.writing and not state.late and state.issued < WRITES:
        yield "raised", (state._replace(late=True) if late else _raise(state))._replace(writing="raised")
    elif state.writing == "raised":
        yield "applied", state._replace(writing="applied", issued=state.issued + 1, applied=state.issued + 1)
    elif state.writing == "applied":
        yield "synced", state._replace(writing="synced", durable=state.applied)
        if variant == "answers before it is durable":
            yield "acknowledged", state._replace(floor=state.applied)
    elif state.writing == "synced":
        ready = state if variant != "raises when it can be read already" else _raise(state)
        yield "acknowledged", ready._replace(writing="", floor=max(state.floor, state.applied))
    if variant == "raises behind the answer" and state.late and not state.writing:
        yield "raised at last", _raise(state)


# ---------------------------------------------------------------------- the reader


def _words(state: State) -> tuple[int, int]:
    """Generation and lease, as they are in what it has mapped."""
    if state.table == "old":
        return state.generation, state.lease
    return state.new_generation, state.new_lease


def _reader(state: State, variant: str) -> Iterator[Step]:
    generation, lease = _words(state)
    if state.step == "idle":
        yield "begins", state._replace(step="begun", begun=state.floor)
    elif state.step == "begun":
        if state.entry is None or not state.table:
            yield "has no entry", state._replace(step="asks")
        else:
            yield "looks up", state._replace(step="found", got=state.entry)
    elif state.step == "found":
        same = generation == state.got[1] or variant == "looks at no generation"
        yield "compares", state._replace(step="compared" if same else "asks")
    elif state.step == "compared":
        trusts = lease > 0 or variant == "looks at no lease"
        yield ("answers itself", _returned(state)) if trusts else ("lease over", state._replace(step="asks"))
    elif state.step == "asks":
        yield from _ask(state, variant)
    elif state.step == "answer in work":
        # Held back until what it shows is on the disk.
        if state.server in ("dead", "ended"):
            yield "connection lost", state._replace(step="asks")
        elif state.durable >= state.got[0] or variant == "answers before it is durable":
            yield "answer sent", state._replace(step="answer sent")
    elif state.step == "answer sent":
        told = generation if variant == "samples the generation when the answer has come" else state.got[1]
        yield "answered", _returned(state._replace(entry=(state.got[0], told)))


def _ask(state: State, variant: str) -> Iterator[Step]:
    """Attach, if the connection's server is another one or there was none, and fetch."""
    now = {"serving": "old", "new": "new", "waiting": "new"}.get(state.server, "")
    if not _serves(state, variant):
        return
    if state.table == now:
        generation = _words(state)[0]
        if variant == "tells the generation that comes with the next change":
            generation += 1
        yield "fetched", state._replace(step="answer in work", got=(state.applied, generation))
        return
    kept = state.entry if variant == "keeps entries over a reconnection" else None
    attached = state._replace(table=now, entry=kept)
    if now == "new":
        yield "attached again", attached._replace(new_lease=LEASE, step="begun" if kept else "asks")
    elif variant == "attaches before the file is written":
        yield "attached", attached._replace(lease=LEASE, pending=True)
    else:
        yield "attached", attached._replace(lease=LEASE, dirty=True)


def _returned(state: State) -> State:
    value = state.got[0]
    if value < state.begun:
        raise Wrong(f"{value} was read although {state.begun} had been seen before")
    return state._replace(step="idle", begun=0, got=(0, 0), floor=max(state.floor, value))


# ---------------------------------------------------------------------- all of it


def explore(begin: S, follow: Callable[[S, str], Iterator[tuple[str, S]]], variant: str) -> tuple[int, list[str]]:
    """How many states can be reached, and the steps to one in which something goes wrong; none if nothing does."""
    before: dict[S, tuple[str, S | None]] = {begin: ("", None)}
    level = [begin]
    while level:
        reached = []
        for state in level:
            try:
                for label, found in follow(state, variant):
                    if found not in before:
                        before[found] = label, state
                        reached.append(found)
            except Wrong as wrong:
                return len(before), [*_way(before, state), str(wrong)]
        level = reached
    return len(before), []


def _way(before: dict[S, tuple[str, S | None]], state: S | None) -> list[str]:
    labels = []
    while state is not None:
        label, state = before[state]
        labels.append(label)
    return labels[::-1][1:]
