"""A daemon that the tests watch from outside, and raw connections that can send any bytes."""

from collections.abc import Callable, Iterator

import pytest

from tests.harness.daemon import new_folders, see_all_end
from tests.harness.raw_peer import RawPeer
from tests.harness.watched_daemon import WatchedDaemon

Start = Callable[..., WatchedDaemon]


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """Start daemons, each with a configuration as text. All must be in order when the module's tests are over."""
    daemons: list[WatchedDaemon] = []
    with new_folders() as new_folder:

        def begin(configuration: str = "", *, tcp: bool = False) -> WatchedDaemon:
            daemons.append(WatchedDaemon(new_folder(), configuration, tcp=tcp))
            return daemons[-1]

        yield begin
        see_all_end(daemons)


@pytest.fixture(scope="module")
def shared_daemon(start: Start) -> WatchedDaemon:
    """One daemon for a whole module."""
    return start()


@pytest.fixture
def daemon(shared_daemon: WatchedDaemon) -> Iterator[WatchedDaemon]:
    """An empty daemon with default limits. Its only connection is the canary's."""
    shared_daemon.counts(0)
    while (page := shared_daemon.ask(["scan", "", None, 10_000, None, True])[0])[0]:
        shared_daemon.ask(["delete", [key for key, _, _ in page[0]]])
    yield shared_daemon
    shared_daemon.close_peers()


@pytest.fixture
def peer(daemon: WatchedDaemon) -> Iterator[RawPeer]:
    """A connection to the daemon."""
    with daemon.connect() as one:
        yield one
