"""Work in steps: what may take long is a generator, which yields wherever other work may run, and returns its result.

        work = validate(store, …)
        step, yield, step, yield … return            the caller decides when each step runs (kvd/requests/)

The rules of a generator of this kind: a step touches STEP_KEYS keys or so, whatever there is in the store. At each
yield the store may be changed by other commits, so what was found before is checked again, or was read at a pinned
version. What it holds, it gives back in ``finally``, because its caller may never go on with it.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

Steps = Generator[None, None, Result]

# One step touches about this many keys. Cold ones take some 2 µs each.
STEP_KEYS = 512


def run_to_end(work: Steps[Result]) -> Result:
    """Run all steps at once, where no other work waits; return the result."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: Result = end.value
            return result


def chunks(items: Iterable[Item], size: int = STEP_KEYS) -> Iterator[list[Item]]:
    """Yield ``items`` in lists of ``size``. Nothing may be added to them meanwhile."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def slices(items: Sequence[Item], size: int = STEP_KEYS) -> Iterator[Sequence[Item]]:
    """Yield ``items`` in parts of ``size``."""
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]
