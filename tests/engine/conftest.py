"""A database whose two clocks a test sets."""

from collections.abc import Iterator

import pytest

from kvd.engine.database import Database
from kvd.store.window import WindowLimits
from tests.harness.clocks import ManualScheduler


class Clocks:
    """A wall clock, which a test may set to any time, and a clock that runs evenly; both in µs."""

    def __init__(self) -> None:
        self.wall_us = 1_000_000
        self.even_us = 5_000
        self.scheduler = ManualScheduler()

    def advance(self, us: int) -> None:
        """Let time pass on both clocks."""
        self.wall_us += us
        self.even_us += us

    def database(self, limits: WindowLimits | None = None) -> Database:
        """Return a new database that goes by these clocks."""
        return Database(limits, clock=lambda: self.wall_us, timer=lambda: self.even_us, scheduler=self.scheduler)


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def database(clocks: Clocks) -> Iterator[Database]:
    """An empty database. After the test its counters must agree with its keys."""
    made = clocks.database()
    yield made
    page = made.store.scan("", None, 10**6)
    assert page.next is None
    counters = made.store.counters
    assert (counters.keys, counters.value_bytes) == (
        len(page.items),
        sum(len(item.value or b"") for item in page.items),
    )
