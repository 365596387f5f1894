"""Daemons of a test's own, for raw connections that send what a hostile client could send."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.harness.daemon import Daemon, new_folders

Start = Callable[..., Daemon]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts daemons, each with a configuration as text; they end with the test."""
    with new_folders() as new_folder, ExitStack() as daemons:
        yield lambda configuration="": daemons.enter_context(Daemon(new_folder(), configuration))


@pytest.fixture
def daemon(start: Start) -> Iterator[Daemon]:
    """A daemon as it comes. It must be the same, and have logged no error, when the test is over."""
    one = start()
    yield one
    if one.process.poll() is None:
        assert one.status()["pid"] == one.process.pid
    assert "ERROR" not in one.log()
