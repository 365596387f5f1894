"""Procedures: calls of several steps, as generators that do no I/O. They yield a step, and are sent its result.

    step                         what the client does                      result
    Exchange                     send these operations in one frame        the exchange, done
    Pause(seconds)               wait                                      None
    CallUser(function, *args)    call the program's function               what the function returns
    NextChange(watch, seconds)   wait for the next change of a watch       the change; None if none came in time
    YieldItems(items)            hand these to the program's loop          None

Both clients go through the same generators; only how they do a step differs.
"""

from __future__ import annotations

from kv.wire import operations
from kv.wire.exchange import Exchange
from kv.wire.operations import Generic, T
from kvd.protocol.ranges import prefix_end

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from datetime import timedelta
    from typing import Any

    from kv.results import Item
    from kv.wire.operations import Operation

    Procedure = Generator["Exchange | Pause | CallUser | NextChange", Any, T]
    Pages = Generator["Exchange | YieldItems[T]", Any, None]

_PAGE_KEYS = 1_000


class Pause:
    """Wait for ``seconds``."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


class CallUser:
    """Call a function of the program; the asyncio client awaits its result."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.function = function
        self.arguments = arguments


class NextChange:
    """Wait for the next change of ``watch``, for at most ``seconds`` (None: for ever)."""

    def __init__(self, watch: Any, seconds: float | None) -> None:  # noqa: ANN401  # of either client
        self.watch = watch
        self.seconds = seconds


class YieldItems(Generic[T]):
    """Hand items to the program that iterates."""

    def __init__(self, items: Sequence[T]) -> None:
        self.items = items


def send(*batch: Operation[Any], store_id: str | None = None) -> Procedure[Exchange]:
    """Send operations in one frame; return the exchange. ``store_id``: they mean something to this store only."""
    exchange: Exchange = yield Exchange(batch, store_id)
    return exchange


def ask(operation: Operation[T], store_id: str | None = None) -> Procedure[T]:
    """Send one operation; return its result. Raises its error."""
    exchange = yield from send(operation, store_id=store_id)
    result: T = exchange.result()
    return result


def run_effects(steps: Procedure[T], do: Callable[[Any], Any]) -> T:
    """Go through a procedure, doing each step with ``do``; return its result."""
    try:
        step = next(steps)
        while True:
            try:
                result = do(step)
            except BaseException as error:
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration as end:
        outcome: T = end.value
        return outcome


def iterate(steps: Pages[T], do: Callable[[Any], Any]) -> Iterator[T]:
    """Go through pages, doing each step with ``do``, and yield their items."""
    result: Any = None
    try:
        while True:
            step = steps.send(result)
            if isinstance(step, YieldItems):
                yield from step.items
                result = None
            else:
                result = do(step)
    except StopIteration:
        return
    finally:
        steps.close()


# ---------------------------------------------------------------------- reads that prolong


def get_and_touch(keys: list[str], ttl: float | timedelta | None) -> Procedure[dict[str, bytes | None]]:
    """The values of ``keys``, which live for ``ttl`` from now on: a touch and a read in one frame.

    The daemon runs the frame in one step, so it returns no value of a key that it did not prolong. Both must succeed.
    """
    exchange = yield from send(operations.touch(keys, ttl), operations.get_many(keys, None))
    exchange.result(0)
    values: dict[str, bytes | None] = exchange.result(1)
    return values


# ---------------------------------------------------------------------- the largest values


def largest_keys(limit: int) -> Procedure[dict[str, int]]:
    """The keys with the largest values, and their bytes: the largest of each page, and the largest of these."""
    limit = operations.number(limit, "a limit")
    sizes: dict[str, int] = {}
    following: str | None = ""
    while following is not None:
        page, following = yield from ask(operations.largest(following, limit))
        sizes.update(page)
        sizes = dict(sorted(sizes.items(), key=lambda item: item[1], reverse=True)[:limit])
    return sizes


# ---------------------------------------------------------------------- scanning


def bounds(prefix: str, start: str | None, end: str | None) -> tuple[str, str | None]:
    """Return where a scan begins (included), and where it ends (excluded; None: at the last key)."""
    prefix, start = operations.text(prefix, "a prefix"), None if start is None else operations.text(start, "start")
    end = None if end is None else operations.text(end, "end")
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
    limit = operations.number_or_none(limit, "a limit")
    following: str | None
    following, stop = bounds(prefix, start, end)
    while following is not None and (limit is None or limit > 0):
        page = _PAGE_KEYS if limit is None else min(limit, _PAGE_KEYS)
        exchange: Exchange = yield Exchange((operations.scan(following, stop, page, at, keys_only),), store_id)
        items, following = exchange.result()
        yield YieldItems(items)
        if limit is not None:
            limit -= len(items)
