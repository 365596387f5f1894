"""Rules and tokens that change while a client's large frame is still running."""

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
# Each looks for keys at a version that has none, and passes over all the deleted ones: about a second together.
LONG = [["scan", "1", None, 1, 2, True]] * 300
RULE = 'access = [{everyone = true, rights = ["read", "write", "watch"]}]'


@pytest.fixture
def ruled(start: "Start") -> "WatchedDaemon":
    """A daemon that also listens on TCP. Every client may do everything but administer."""
    daemon = start(f"{RULE}\n", tcp=True)
    daemon.canary.ask(["set", dict.fromkeys(KEYS, b"")])
    daemon.canary.ask(["delete", KEYS])
    assert daemon.canary.ask(["set", {"later": b""}]) == [3], "so version 2 is the past, which has the deleted keys"
    return daemon


@pytest.fixture
def client(ruled: "WatchedDaemon") -> "Iterator[RawPeer]":
    with ruled.greeted() as peer:
        yield peer


def begin(daemon: "WatchedDaemon", peer: "RawPeer", *requests: object) -> None:
    """Send a frame that begins with a set and takes long, and wait until it has begun."""
    peer.send(frame(["set", {"0": b"begun"}], *requests))
    eventually(lambda: daemon.canary.ask(["get", "0"]) == [b"begun"])


def test_a_watch_does_not_begin_if_its_right_is_revoked_while_its_frame_runs(
    ruled: "WatchedDaemon", client: "RawPeer"
) -> None:
    begin(ruled, client, ["watch", ""], *LONG)
    config = pathlib.Path(ruled.path).parent / "kvd.toml"
    config.write_text(config.read_text().replace(RULE, 'access = [{everyone = true, rights = ["write"]}]'))
    assert isinstance(ruled.canary.ask(["reload"])[0], list)
    replies = client.receive()
    assert replies[1] is True
    assert replies[-1]["error"] == "forbidden", "the frame was still running"
    assert client.receive()["error"] == "forbidden"
    assert client.says_nothing_more()


def test_a_frame_stops_when_its_token_is_revoked(ruled: "WatchedDaemon", client: "RawPeer") -> None:
    begin(ruled, client, *LONG, ["set", {"0": b"late"}])
    (pathlib.Path(ruled.path).parent / "token").write_text("another " + "x" * 16)
    assert isinstance(ruled.canary.ask(["reload"])[0], list)
    replies = client.receive()
    assert replies[-1]["error"] == "unauthenticated", "the rest of the frame did not run"
    assert client.receive()["error"] == "unauthenticated"
    eventually(lambda: ruled.connections() == 0)
    assert ruled.canary.ask(["get", "0"]) == [b"begun"]
    assert "ERROR" not in ruled.log()
