"""Daemons that speak HTTP, with and without tokens."""

from collections.abc import Callable, Iterator

import pytest

from tests.harness.daemon import new_folders, see_all_end
from tests.harness.http_daemon import HttpDaemon

Start = Callable[..., HttpDaemon]


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """Start daemons. All must be in order when the module's tests are over."""
    daemons: list[HttpDaemon] = []
    with new_folders() as new_folder:

        def begin(configuration: str = "", *flags: str, is_open: bool = True) -> HttpDaemon:
            daemons.append(HttpDaemon(new_folder(), configuration, *flags, is_open=is_open))
            return daemons[-1]

        yield begin
        see_all_end([each.daemon for each in daemons])


@pytest.fixture(scope="module")
def shared(start: Start) -> HttpDaemon:
    """One open daemon (without tokens) for a whole module."""
    return start()


@pytest.fixture
def daemon(shared: HttpDaemon) -> HttpDaemon:
    """The shared daemon, emptied."""
    keys = [item["key"] for item in shared.ask("GET", "/v2/keys?limit=60000").json()["items"]]
    if keys:
        assert shared.post("/v2/delete", {"keys": keys}).status == 200
    return shared
