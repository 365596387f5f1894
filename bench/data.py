"""The keys and values of every measurement: 16-byte keys, 64-byte values, all different, the same for every server."""

import random
from collections.abc import Iterator

KEY_BYTES = 16
VALUE_BYTES = 64
BATCH = 100  # keys in one set while loading

Items = dict[str, bytes]


def key(number: int) -> str:
    """The key of this number, 16 bytes."""
    return f"key:{number:012d}"


def value(number: int) -> bytes:
    """The value of this number, 64 bytes. No two values are equal, so that no server can store them once."""
    return b"%064d" % number


def batches(count: int, size: int = BATCH) -> Iterator[Items]:
    """Yield the keys 0 to `count` with their values, `size` at a time."""
    for begin in range(0, count, size):
        yield {key(n): value(n) for n in range(begin, min(begin + size, count))}


def chosen(count: int, of: int) -> Items:
    """Choose `count` different keys of the first `of`: the same in every run, so that runs can be compared."""
    numbers = random.Random(20).sample(range(of), count)  # noqa: S311 (nothing secret: a fixed choice)
    return {key(n): value(n) for n in numbers}
