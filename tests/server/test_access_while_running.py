"""Rules and tokens that change while a large frame of somebody's is still running."""

import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.harness.raw_peer import frame
from tests.harness.waiting import eventually

if TYPE_CHECKING:
    from tests.harness.raw_peer import RawPeer
    from tests.harness.watched_daemon import WatchedDaemon
    from tests.server.conftest import Start

KEYS = [f"{number}" for number in range(8_000)]
# Each looks at all the keys that there were, and tells nothing: together they take a second or so.
LONG = [["scan", "1", None, 1, None, True]] * 300
RULE = 'access = [{everyone = true, rights = ["read", "write", "watch"]}]'


@pytest.fixture
def ruled(start: "Start") -> "WatchedDaemon":
    """A daemon on TCP too, where everybody may do everything."""
    daemon = start(f"{RULE}\n", tcp=True)
    daemon.canary.ask(["set", dict.fromkeys(KEYS, b"")])
    daemon.canary.ask(["delete", KEYS])
    return daemon


@pytest.fixture
def bob(ruled: "WatchedDaemon") -> "Iterator[RawPeer]":
    with ruled.greeted() as peer:
        yield peer


def begin(daemon: "WatchedDaemon", peer: "RawPeer", *requests: object) -> None:
    """Send a frame that begins with a set and takes long; it has begun."""
    peer.send(frame(["set", {"0": b"begun"}], *requests))
    eventually(lambda: daemon.canary.ask(["get", "0"]) == [b"begun"])


def test_a_watch_does_not_begin_whose_right_went_while_its_frame_was_running(
    ruled: "WatchedDaemon", bob: "RawPeer"
) -> None:
    begin(ruled, bob, ["watch", ""], *LONG)
    config = pathlib.Path(ruled.path).parent / "kvd.toml"
    config.write_text(config.read_text().replace(RULE, 'access = [{everyone = true, rights = ["write"]}]'))
    assert isinstance(ruled.canary.ask(["reload"])[0], list)
    replies = bob.receive()
    assert replies[1] is True
    assert replies[-1]["error"] == "forbidden", "it was still running"
    assert bob.receive()["error"] == "forbidden"
    assert bob.says_nothing_more()


def test_a_frame_does_not_run_on_for_a_token_that_was_taken_away(ruled: "WatchedDaemon", bob: "RawPeer") -> None:
    begin(ruled, bob, *LONG, ["set", {"0": b"late"}])
    (pathlib.Path(ruled.path).parent / "token").write_text("somebody " + "x" * 16)
    assert isinstance(ruled.canary.ask(["reload"])[0], list)
    assert bob.receive()["error"] == "unauthenticated"
    eventually(lambda: ruled.connections() == 0)
    assert ruled.canary.ask(["get", "0"]) == [b"begun"]
    assert "ERROR" not in ruled.log()
