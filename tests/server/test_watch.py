"""Watches of a real daemon, over the Unix socket and over TCP."""

import socket
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.raw_peer import KIB, MIB, frame
from tests.harness.real_daemon import TOKEN
from tests.harness.waiting import eventually

if TYPE_CHECKING:
    from tests.harness.raw_peer import RawPeer
    from tests.harness.watched_daemon import WatchedDaemon
    from tests.server.conftest import Start

NO_INPUT = {"error": "bad_request", "message": "a connection that watches takes no more requests"}
HELLO = ["hello", 1, "test", TOKEN]


class Received:
    """The events that a watching connection receives, in order."""

    def __init__(self, peer: "RawPeer", state: dict[str, bytes] | None = None) -> None:
        self.peer = peer
        self.state = dict(state or {})
        self.version = 0
        self.resets = 0
        self.changes: list[int] = []
        self._events: list[Any] = []

    def next(self) -> Any:  # noqa: ANN401 - an event
        """Return the next event, and apply it to the state."""
        while not self._events:
            events = self.peer.receive()
            assert isinstance(events, list), events
            self._events = events
        event = self._events.pop(0)
        self._apply(*event)
        return event

    def until(self, version: int) -> "Received":
        """Read events until all changes up to ``version`` have come."""
        while self.version < version:
            self.next()
        return self

    def _apply(self, kind: str, *fields: Any) -> None:  # noqa: ANN401 - fields of an event
        if kind == "reset":
            self.state = {}
            self.resets += 1
        elif kind == "item":
            self.state[fields[0]] = fields[1]
        elif kind == "change":
            version, _, _, changes = fields
            assert version > self.version
            self.version = version
            self.changes.append(version)
            self.state |= changes
            self.state = {key: value for key, value in self.state.items() if value is not None}
        else:
            assert kind == "live"
            assert fields[0] >= self.version
            self.version = fields[0]


@pytest.fixture(scope="module")
def both(start: "Start") -> "WatchedDaemon":
    """A daemon that also listens on TCP."""
    return start(tcp=True)


@pytest.fixture(params=["unix", "tcp"])
def connect(request: pytest.FixtureRequest, both: "WatchedDaemon") -> "Iterator[Callable[[], RawPeer]]":
    """Make connections that have said hello where they must."""
    peers: list[RawPeer] = []

    def make() -> "RawPeer":
        peers.append(both.greeted() if request.param == "tcp" else both.connect())
        return peers[-1]

    yield make
    for peer in peers:
        peer.close()
    both.counts(0)


def watch(peer: "RawPeer", *arguments: object) -> Received:
    assert peer.ask(["watch", *arguments]) == [True]
    return Received(peer)


def version(daemon: "WatchedDaemon") -> int:
    return daemon.metrics()["version"]


def contents(daemon: "WatchedDaemon", prefix: str) -> dict[str, bytes]:
    """All keys with the prefix."""
    entries: dict[str, bytes] = {}
    start: str | None = prefix
    while start is not None:
        items, start = daemon.ask(["scan", start, None, 10_000])[0]
        entries |= {key: value for key, value, _ in items if key.startswith(prefix)}
    return entries


# ---------------------------------------------------------------------- the events


def test_a_watch_from_now_on(both: "WatchedDaemon", connect: "Callable[[], RawPeer]") -> None:
    both.ask(["set", {"now/old": b""}])
    received = watch(connect(), "now/")
    now = version(both)
    assert received.next() == ["live", now]
    changed = both.ask(["set", {"now/a": b"1", "other": b""}])[0]
    kind, at, time, author, changes = received.next()
    assert (kind, at, changes) == ("change", changed, {"now/a": b"1"})
    assert [[at, time, author]] == [entry[:3] for entry in both.ask(["log", changed, 1])[0]]
    both.ask(["set", {"other": b"1"}], ["delete", ["now/a", "now/old"]])
    assert received.next()[4] == {"now/a": None, "now/old": None}


@pytest.mark.parametrize("missed", [0, 1, 2, 3])
def test_a_watch_from_a_version(both: "WatchedDaemon", connect: "Callable[[], RawPeer]", missed: int) -> None:
    versions = both.ask(*[["set", {"from": b"%d" % number}] for number in range(3)])
    received = watch(connect(), "from", versions[-1] - missed)
    assert [received.next()[1] for _ in range(missed)] == versions[3 - missed :]
    assert received.next() == ["live", versions[-1]]
    assert received.resets == 0


def test_a_watch_from_the_beginning_and_from_a_future_version(
    both: "WatchedDaemon", connect: "Callable[[], RawPeer]"
) -> None:
    now = both.ask(["set", {"all/a": b"1", "all/b": b"2"}])[0]
    assert watch(connect(), "all/", 0).until(now).state == contents(both, "all/")
    beyond = watch(connect(), "all/", now + 1_000)
    assert beyond.next() == ["reset", now]
    assert beyond.until(now).state == {"all/a": b"1", "all/b": b"2"}
    assert beyond.resets == 1


def test_a_watch_resumes_at_its_last_version(both: "WatchedDaemon", connect: "Callable[[], RawPeer]") -> None:
    peer = connect()
    received = watch(peer, "back/")
    received.until(both.ask(["set", {"back/a": b"1"}])[0])
    peer.close()
    last = both.ask(["set", {"back/b": b"2"}], ["delete", ["back/a"]], ["set", {"back/c": b"3"}])[-1]
    again = connect()
    assert again.ask(["watch", "back/", received.version]) == [True]
    resumed = Received(again, received.state)
    assert resumed.until(last).state == {"back/b": b"2", "back/c": b"3"}
    assert resumed.changes == [last - 2, last - 1, last]
    assert resumed.resets == 0


def test_an_expiry_is_sent_without_any_request(both: "WatchedDaemon", connect: "Callable[[], RawPeer]") -> None:
    received = watch(connect(), "ttl/")
    both.ask(["set", {"ttl/a": b"1", "ttl/b": b"2"}, {"ttl": 30}], ["set", {"ttl/long": b""}, {"ttl": 1_000_000}])
    for expected in ("live", "change", "change"):
        assert received.next()[0] == expected
    kind, _, _, author, changes = received.next()
    assert (kind, author, changes) == ("change", [None, None, "expired"], {"ttl/a": None, "ttl/b": None})


def test_changes_larger_than_one_batch_of_events_all_arrive(
    both: "WatchedDaemon", connect: "Callable[[], RawPeer]"
) -> None:
    received = watch(connect(), "big/")
    last = both.ask(*[["set", {f"big/{number}": bytes([number]) * MIB}] for number in range(8)])[-1]
    assert received.until(last).state == {f"big/{number}": bytes([number]) * MIB for number in range(8)}
    assert watch(connect(), "big/", last + 99).until(last).state == received.state
    both.ask(["delete", list(received.state)])


# ---------------------------------------------------------------------- the request


@pytest.mark.parametrize("padding", [0, 100 * KIB], ids=["small", "large"])
def test_other_requests_of_its_frame_are_answered(
    both: "WatchedDaemon", connect: "Callable[[], RawPeer]", padding: int
) -> None:
    peer = connect()
    before, true, value = peer.ask(["set", {"frame/a": b"x" * padding}], ["watch", "frame/"], ["get", "frame/a"])
    assert (true, value) == (True, b"x" * padding)
    received = Received(peer)
    assert received.next() == ["live", before]
    after = both.ask(["set", {"frame/b": b""}])[0]
    assert received.next()[:2] == ["change", after]


def test_a_watch_may_follow_hello_at_once(both: "WatchedDaemon") -> None:
    for together in (True, False):
        with both.stranger() as peer:
            if together:
                peer.send(frame(HELLO, ["watch", "hello/"]))
                assert peer.receive()[1] is True
            else:
                peer.send(frame(HELLO) + frame(["watch", "hello/"]))
                assert peer.receive()[0][0] == 1
                assert peer.receive() == [True]
            after = both.ask(["set", {"hello/a": b""}])[0]
            assert Received(peer).until(after).state == {"hello/a": b""}
    both.counts(0)


def test_a_client_without_a_token_cannot_watch(both: "WatchedDaemon") -> None:
    with both.stranger() as stranger:
        assert stranger.ask(["watch", ""])[0]["error"] == "unauthenticated"
        assert stranger.receive()["error"] == "unauthenticated"
        assert stranger.says_nothing_more()


def test_a_watch_that_fails_leaves_the_connection_as_it_was(start: "Start") -> None:
    daemon = start("limits.max_watches_per_uid = 1\n", tcp=True)
    with daemon.greeted() as first, daemon.greeted() as second:
        received = watch(first, "")
        assert second.ask(["watch", ""])[0]["error"] == "busy"
        assert second.ask(["watch", "x" * 5_000])[0]["error"] == "too_large"
        last = second.ask(["set", {"a": b""}])[0]
        assert received.until(last).state == {"a": b""}
        first.close()
        eventually(lambda: second.ask(["watch", ""]) == [True], "for the place of the closed watch")


@pytest.mark.parametrize("timing", ["later", "at once", "a part of a frame", "after a large frame"])
def test_any_input_after_a_watch_ends_the_connection(
    both: "WatchedDaemon", connect: "Callable[[], RawPeer]", timing: str
) -> None:
    peer, ping = connect(), frame(["ping"])
    if timing == "later":
        assert watch(peer, "input/").next()[0] == "live"
        peer.send(ping)
    elif timing == "after a large frame":
        peer.send(frame(["set", {"input": b"x" * 100 * KIB}], ["watch", "input/"]) + ping)
        assert peer.receive()[1] is True
    else:
        peer.send(frame(["watch", "input/"]) + ping[: 3 if timing == "a part of a frame" else None])
        assert peer.receive() == [True]
    while isinstance(last := peer.receive(), list):
        assert last[0][0] == "live", "the request did not run"
    assert last == NO_INPUT
    assert peer.says_nothing_more()


def test_a_half_close_ends_a_watch(both: "WatchedDaemon", connect: "Callable[[], RawPeer]") -> None:
    peer = connect()
    watch(peer, "")
    peer.socket.shutdown(socket.SHUT_WR)
    peer.rest()
    both.counts(0)


# ---------------------------------------------------------------------- watchers that do not read


def write_much(daemon: "WatchedDaemon", commits: int, *, per_frame: int = 1_000) -> int:
    """Make ``commits`` commits of 200 bytes each. Return the version of the last."""
    last = 0
    for first in range(0, commits, per_frame):
        last = daemon.ask(*[["set", {f"much/{n % 3_000}": b"%200d" % n}] for n in range(first, first + per_frame)])[-1]
    return last


SMALL_HISTORY = "history.max_bytes = 1000000\n"


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_a_watcher_that_does_not_read_costs_nothing_and_is_resynchronised_once_it_does(
    start: "Start", kind: str
) -> None:
    daemon = start(SMALL_HISTORY, tcp=kind == "tcp")
    write_much(daemon, 6_000)
    with daemon.greeted() if kind == "tcp" else daemon.connect() as peer:
        received = watch(peer, "much/")
        growth = daemon.peak_from_here()
        last = write_much(daemon, 100_000)
        assert growth() < 8 * MIB
        assert daemon.connections() == 1, "the watcher is still connected"
        received.until(last)
        assert received.resets >= 1
        assert received.state == contents(daemon, "much/")
        after = daemon.ask(["set", {"much/after": b""}])[0]
        resets = received.resets
        assert received.until(after).state["much/after"] == b""
        assert received.resets == resets


def test_a_watcher_that_never_reads_is_closed(start: "Start") -> None:
    daemon = start(SMALL_HISTORY + "limits.stalled_peer_timeout_ms = 200\n")
    with daemon.connect() as peer:
        watch(peer, "much/")
        write_much(daemon, 10_000)
        daemon.counts(0)
    assert "it kept the server waiting" in daemon.log()


def test_a_watcher_that_does_not_read_does_not_delay_others(both: "WatchedDaemon") -> None:
    with both.connect() as silent, both.connect() as reading:
        watch(silent, "much/")
        received = watch(reading, "much/")
        thread = threading.Thread(target=write_much, args=(both, 20_000))
        thread.start()
        while len(received.changes) < 20_000 and not received.resets:
            received.next()
        thread.join()
    both.counts(0)


# ---------------------------------------------------------------------- the end


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_a_stop_sends_watchers_all_events_and_a_last_error(start: "Start", kind: str) -> None:
    daemon = start(tcp=True)
    with daemon.greeted() if kind == "tcp" else daemon.connect() as peer:
        received = watch(peer, "")
        last = write_much(daemon, 3_000)
        daemon.process.terminate()
        received.until(last)
        assert received.changes[-1] == last
        while isinstance(goodbye := peer.receive(), list):
            pass
        assert goodbye == {"error": "shutting_down", "message": "the server is stopping"}
        assert peer.says_nothing_more()


def test_a_tcp_connection_that_watches_may_be_idle(start: "Start") -> None:
    daemon = start("limits.tcp_idle_timeout_ms = 50\nlimits.hello_timeout_ms = 50\n", tcp=True)
    with daemon.greeted() as watching:
        received = watch(watching, "")
        for _ in range(2):
            with daemon.greeted() as idle:
                assert idle.says_nothing_more(), "the idle time of a peer that does not watch has passed"
        after = daemon.ask(["set", {"a": b""}])[0]
        assert received.until(after).state == {"a": b""}
