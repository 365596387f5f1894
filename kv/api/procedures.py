"""Procedures: what takes several steps, as generators that do no I/O. They yield a step and are sent what came of it.

    step                    what it asks of the client               what comes back
    Delivery                send these operations in one frame       the same, done
    Pause(seconds)          wait                                     None
    Apply(function, *args)  call the program's function              its result
    Next(watch, seconds)    wait for the next change of a watch      the change; None if none came in time
    Emit(things)            hand these to whoever iterates           None

Both clients go through the same generators; only how a step is done differs.
"""

from __future__ import annotations

from kv.wire import operations
from kv.wire.exchange import Exchange
from kv.wire.operations import Generic, T, prefix_end

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from datetime import timedelta
    from typing import Any

    from kv.results import Item
    from kv.wire.operations import Operation

    Step = "Exchange | Pause | CallUser | Next"
    Procedure = Generator["Exchange | Pause | CallUser | Next", Any, T]
    Pages = Generator["Exchange | YieldItem[T]", Any, None]

_PAGE_KEYS = 1_000


class Pause:
    """Wait for so many seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


class CallUser:
    """Call a function of the program, and await it if it has to be."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.function = function
        self.arguments = arguments


class Next:
    """Wait for the next change that ``watch`` tells, for at most so many seconds (None: for ever)."""

    def __init__(self, watch: Any, seconds: float | None) -> None:  # noqa: ANN401  # of one client or the other
        self.watch = watch
        self.seconds = seconds


class YieldItem(Generic[T]):
    """Hand things out to whoever iterates."""

    def __init__(self, things: Sequence[T]) -> None:
        self.things = things


def send(*sent: Operation[Any], store_id: str | None = None) -> Procedure[Exchange]:
    """Operations in one frame; their delivery. ``store_id``: they mean something to this store only."""
    delivery: Exchange = yield Exchange(sent, store_id)
    return delivery


def ask(operation: Operation[T], store_id: str | None = None) -> Procedure[T]:
    """One operation; what it came to. Raises its error."""
    delivery = yield from send(operation, store_id=store_id)
    result: T = delivery.result()
    return result


def run_effects(steps: Procedure[T], do: Callable[[Any], Any]) -> T:
    """Go through a procedure, doing each step with ``do``; what it returns."""
    try:
        step = next(steps)
        while True:
            try:
                came = do(step)
            except BaseException as error:
                step = steps.throw(error)
            else:
                step = steps.send(came)
    except StopIteration as end:
        result: T = end.value
        return result


def iterate(steps: Pages[T], do: Callable[[Any], Any]) -> Iterator[T]:
    """Go through pages, doing each step with ``do``, and yield what they bring."""
    came: Any = None
    try:
        while True:
            step = steps.send(came)
            if isinstance(step, YieldItem):
                yield from step.things
                came = None
            else:
                came = do(step)
    except StopIteration:
        return
    finally:
        steps.close()


# ---------------------------------------------------------------------- reading that prolongs


def get_and_touch(keys: list[str], ttl: float | timedelta | None) -> Procedure[dict[str, bytes | None]]:
    """The values of ``keys``, which live for ``ttl`` from now on: a touch and a read in one frame.

    The frame runs in one step of the daemon, so no value is told of a key that was not prolonged. Both have to succeed.
    """
    delivery = yield from send(operations.touch(keys, ttl), operations.get_many(keys, None))
    delivery.result(0)
    values: dict[str, bytes | None] = delivery.result(1)
    return values


# ---------------------------------------------------------------------- the largest


def largest_keys(limit: int) -> Procedure[dict[str, int]]:
    """The keys with the largest values, and their bytes: the largest of each page, and of these the largest."""
    sizes: dict[str, int] = {}
    following: str | None = ""
    while following is not None:
        page, following = yield from ask(operations.largest(following, limit))
        sizes.update(page)
        sizes = dict(sorted(sizes.items(), key=lambda item: item[1], reverse=True)[:limit])
    return sizes


# ---------------------------------------------------------------------- scanning


def bounds(prefix: str, start: str | None, end: str | None) -> tuple[str, str | None]:
    """Where a scan begins, and before what it ends."""
    ends = [bound for bound in (prefix_end(prefix), end) if bound is not None]
    return max(prefix, start or ""), min(ends, default=None)


def scan(
    prefix: str,
    *,
    start: str | None = None,
    end: str | None = None,
    limit: int | None = None,
    at: int | None = None,
    keys_only: bool = False,
    store_id: str | None = None,
) -> Pages[Item]:
    """The keys of a prefix or a range, page by page."""
    following: str | None
    following, stop = bounds(prefix, start, end)
    while following is not None and (limit is None or limit > 0):
        page = _PAGE_KEYS if limit is None else min(limit, _PAGE_KEYS)
        delivery: Exchange = yield Exchange((operations.scan(following, stop, page, at, keys_only),), store_id)
        items, following = delivery.result()
        yield YieldItem(items)
        if limit is not None:
            limit -= len(items)
