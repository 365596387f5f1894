"""Requests as a client sends them, to a server in the test's process."""

from collections.abc import Callable, Iterator

import pytest

from tests.harness import in_memory
from tests.harness.in_memory import InMemoryClient


@pytest.fixture
def client() -> InMemoryClient:
    """A connection over the Unix socket, of the daemon's own user."""
    return in_memory.connect()


@pytest.fixture(scope="session")
def connect() -> Callable[..., InMemoryClient]:
    """Connect to a server of its own, with other limits, tokens or users."""
    return in_memory.connect


@pytest.fixture
def quiet_loggers(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """The server's log records."""
    with caplog.at_level("INFO"):
        yield caplog
