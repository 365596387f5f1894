"""attach and fetch on the wire: which connections get the table, when, and what a fetch has then."""

import os
import pathlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from kvd.protocol.near_cache import LEASE, LEASE_MS, clock_id, table_bytes
from tests.harness.raw_peer import DescriptorPeer, frame
from tests.harness.waiting import DEADLINE_S, eventually
from tests.near.conftest import SLOTS
from tests.near.test_table import mapped_words

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.near.conftest import ReplaceableDaemon

    Start = Callable[..., ReplaceableDaemon]

# The daemon's own, and that of its mapping.
OWN_DESCRIPTORS = 2
HELLO, ATTACH, PING = ["hello", 1, "test"], ["attach"], ["ping"]


@pytest.fixture
def raw(shared: "ReplaceableDaemon") -> Iterator[DescriptorPeer]:
    with DescriptorPeer.unix(shared.address) as peer:
        yield peer


def connect(daemon: "ReplaceableDaemon") -> DescriptorPeer:
    return daemon.keep(DescriptorPeer.unix(daemon.address))


def refusal(reply: dict[str, object]) -> object:
    return reply["error"]


def test_the_table_comes_with_the_reply(raw: DescriptorPeer) -> None:
    before = time.monotonic_ns() // 1_000
    _, attached = raw.ask(HELLO, ATTACH)
    assert attached[:2] == [SLOTS, LEASE_MS]
    assert before <= attached[2] <= time.monotonic_ns() // 1_000
    assert attached[3] == clock_id()
    [table] = raw.passed
    assert os.fstat(table).st_size == table_bytes(SLOTS)
    assert mapped_words(table, SLOTS)[LEASE] > time.monotonic_ns()


def test_the_table_comes_without_hello_too_and_before_later_replies(raw: DescriptorPeer) -> None:
    raw.send(frame(ATTACH) + frame(PING, PING))
    assert raw.receive()[0][:2] == [SLOTS, LEASE_MS]
    assert raw.receive() == [True, True]
    assert len(raw.passed) == 1


def test_batched_sets_after_the_attach_are_answered_after_it(raw: DescriptorPeer) -> None:
    sets = [frame(["set", {"a": b"%d" % number}]) for number in range(20)]
    raw.send(frame(HELLO, ATTACH) + b"".join(sets) + frame(["get", "a"]))
    assert raw.receive()[1][:2] == [SLOTS, LEASE_MS]
    assert len(raw.passed) == 1
    versions = [raw.receive()[0] for _ in range(20)]
    assert versions == sorted(versions)
    assert raw.receive() == [b"19"]


@pytest.mark.parametrize(
    "frames",
    [[[PING], [ATTACH]], [[["set", {"a": b""}]], [ATTACH]], [[PING, *[["get", "a"]] * 30_000], [ATTACH]]],
    ids=["of few", "batched", "large"],
)
def test_only_the_first_frame_can_attach(raw: DescriptorPeer, frames: list[list[Any]]) -> None:
    raw.send(b"".join(frame(*requests) for requests in frames))
    raw.receive()
    assert refusal(raw.receive()[0]) == "bad_request"
    assert raw.ask(PING) == [True]
    assert raw.passed == []


def test_a_connection_attaches_once(raw: DescriptorPeer) -> None:
    first, second = raw.ask(ATTACH, ATTACH)
    assert isinstance(first, list)
    assert refusal(second) == "bad_request"
    assert refusal(raw.ask(ATTACH)[0]) == "bad_request"
    assert len(raw.passed) == 1


def test_a_frame_that_runs_in_slices_cannot_attach(raw: DescriptorPeer) -> None:
    scans = [["scan", "", None, 10]] * 3
    assert refusal(raw.ask(ATTACH, *scans)[0]) == "bad_request"
    assert raw.passed == []


def tables(daemon: "ReplaceableDaemon") -> int:
    """Return how many descriptors of its table a daemon has."""
    count = 0
    for descriptor in pathlib.Path(f"/proc/{daemon.process.pid}/fd").iterdir():
        try:
            count += "memfd:kvd-generations" in os.readlink(descriptor)
        except FileNotFoundError:
            pass  # closed meanwhile
    return count


@pytest.mark.parametrize("durable", [False, True], ids=["in memory", "durable"])
def test_the_daemon_keeps_no_descriptor_of_closed_connections(start: "Start", durable: bool) -> None:
    """Not even of those that closed while their reply waited for a commit to be on the disk."""
    daemon = start(durable=durable)
    writer = connect(daemon)
    for number in range(100):
        peers = [connect(daemon) for _ in range(4)]
        writer.request(["set", {"a": b"%d" % number}])
        for each in peers:
            each.request(HELLO, ATTACH)
        peers[0].receive()
        for each in peers:
            each.close()
        writer.receive()
    eventually(lambda: tables(daemon) == OWN_DESCRIPTORS)
    writer.close()


def test_a_fetch_has_slots_and_generations_once_there_is_a_table(start: "Start") -> None:
    daemon = start()
    plain = connect(daemon)
    version = plain.ask(["set", {"a": b"1"}])[0]
    assert plain.ask(["fetch", ["a", "no"]]) == [[[b"1", version, None, None, None], [None, 0, None, None, None]]]
    attached = connect(daemon)
    attached.ask(ATTACH)
    words = mapped_words(attached.passed[0], SLOTS)
    [[[value, fetched_version, slot, generation, deadline], [_, _, other, _, _]]] = plain.ask(["fetch", ["a", "no"]])
    assert (value, fetched_version, deadline) == (b"1", version, None)
    assert 0 <= slot < SLOTS
    assert 0 <= other < SLOTS
    assert words[8 + slot] == generation
    assert plain.ask(["fetch", ["a"], version]) == [[[b"1", version, None, None, None]]], "a read of the past has none"
    plain.ask(["set", {"a": b"2"}])
    assert words[8 + slot] > generation
    assert plain.ask(["fetch", ["a"]])[0][0][3] == words[8 + slot]
    plain.close()
    attached.close()


def test_the_lease_is_extended_only_while_a_client_is_attached(start: "Start") -> None:
    daemon = start()
    first, second = connect(daemon), connect(daemon)
    first.ask(ATTACH)
    second.ask(ATTACH)
    assert dict(second.ask(["status"])[0])["near_caches"] == 2
    words = mapped_words(first.passed[0], SLOTS)
    lease = words[LEASE]
    eventually(lambda: words[LEASE] > lease + LEASE_MS * 10**6)
    second.close()
    lease = words[LEASE]
    eventually(lambda: words[LEASE] > lease + LEASE_MS * 10**6)
    first.socket.close()
    eventually(lambda: words[LEASE] < time.monotonic_ns())
    # No client is attached, but generations are still bumped.
    plain = connect(daemon)
    assert dict(plain.ask(["status"])[0])["near_caches"] == 0
    generation, slot = plain.ask(["fetch", ["a"]])[0][0][3], plain.ask(["fetch", ["a"]])[0][0][2]
    plain.ask(["set", {"a": b""}])
    assert words[8 + slot] > generation
    third = connect(daemon)
    third.ask(ATTACH)
    assert words[LEASE] > time.monotonic_ns(), "the lease is extended for the next client"
    for each in (plain, third):
        each.close()


def test_the_daemon_has_its_file_only_while_clients_may_trust_its_table(start: "Start") -> None:
    daemon = start()
    dirty = daemon.folder / "s.dirty"
    connect(daemon).ask(PING)
    assert not dirty.exists(), "no client is attached"
    attached = connect(daemon)
    attached.ask(ATTACH)
    words = mapped_words(attached.passed[0], SLOTS)
    assert dirty.stat().st_mode & 0o777 == 0o600
    with open("/proc/sys/kernel/random/boot_id") as boot:
        assert dirty.read_text() == boot.read().strip()
    daemon.process.terminate()
    assert attached.receive()["error"] == "shutting_down"
    daemon.process.wait(DEADLINE_S)
    assert not dirty.exists()
    assert words[LEASE] == 0
    daemon.serve()
    attached = connect(daemon)
    attached.ask(ATTACH)
    daemon.kill()
    assert dirty.exists()


def test_a_daemon_that_cannot_write_its_file_refuses_to_attach(start: "Start") -> None:
    daemon = start()
    (daemon.folder / "s.dirty").mkdir()
    peer = connect(daemon)
    hello, attached = peer.ask(HELLO, ATTACH)
    assert isinstance(hello, list)
    assert refusal(attached) == "internal"
    assert peer.ask(PING) == [True]
    assert peer.passed == []
    (daemon.folder / "s.dirty").rmdir()
    again = connect(daemon)
    assert isinstance(again.ask(ATTACH)[0], list)


def test_the_reply_and_the_table_wait_for_the_disk(start: "Start") -> None:
    """Hello reveals the current version, so its reply waits; the table that comes with it must not get lost."""
    daemon = start(durable=True)
    writer = connect(daemon)
    for number in range(300):
        writer.request(["set", {"a": b"%d" % number}])
        peer = connect(daemon)
        _, attached = peer.ask(HELLO, ATTACH)
        assert attached[0] == SLOTS
        assert len(peer.passed) == 1
        peer.close()
        writer.receive()
