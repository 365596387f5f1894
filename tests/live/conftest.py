"""Daemons for one test each, and raw connections that can send any bytes."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.harness.daemon import Daemon, new_folders

Start = Callable[..., Daemon]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start daemons, each with a configuration as text. They end with the test."""
    with new_folders() as new_folder, ExitStack() as daemons:
        yield lambda configuration="": daemons.enter_context(Daemon(new_folder(), configuration))


@pytest.fixture
def daemon(start: Start) -> Iterator[Daemon]:
    """A daemon with its defaults. After the test it must be the same process and have logged no error."""
    one = start()
    yield one
    if one.process.poll() is None:
        assert one.status()["pid"] == one.process.pid
    assert "ERROR" not in one.log()
