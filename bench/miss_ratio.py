from bench.context import Context
from bench.rows import Row
from collections.abc import Iterator


def miss_ratio(context: Context) -> Iterator[Row]:
    yield from ()
