"""attach and fetch on the wire: who is handed the table, when, and what a fetch tells then."""

import array
import os
import pathlib
import socket
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from kvd.protocol.near_cache import LEASE, LEASE_MS, clock_id, table_bytes
from tests.near.conftest import DEADLINE_S, SLOTS, eventually
from tests.near.test_table import mapped_words

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.near.conftest import Daemon

    Start = Callable[..., Daemon]

# Its own, and its mapping's.
OWN_DESCRIPTORS = 2
HELLO, ATTACH, PING = ["hello", 1, "test"], ["attach"], ["ping"]


class Raw:
    """A connection, and the descriptors that came over it."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(DEADLINE_S)
        self.socket.connect(address)
        self.passed: list[int] = []
        self._data = b""

    def send(self, *frames: list[Any]) -> None:
        """Frames of requests, in one piece."""
        payloads = [msgspec.msgpack.encode(requests) for requests in frames]
        self.socket.sendall(b"".join(len(payload).to_bytes(4, "big") + payload for payload in payloads))

    def receive(self) -> Any:  # noqa: ANN401 - whatever the daemon says
        """The next frame; EOFError at the end."""
        while len(self._data) < 4 or len(self._data) < 4 + int.from_bytes(self._data[:4], "big"):
            data, ancillary, _, _ = self.socket.recvmsg(65_536, socket.CMSG_SPACE(253 * 4))
            for _, _, passed in ancillary:
                self.passed += array.array("i", passed)
            if not data:
                raise EOFError
            self._data += data
        end = 4 + int.from_bytes(self._data[:4], "big")
        payload, self._data = self._data[4:end], self._data[end:]
        return msgspec.msgpack.decode(payload)

    def ask(self, *requests: list[Any]) -> Any:  # noqa: ANN401 - whatever the daemon says
        """One frame and its reply."""
        self.send(list(requests))
        return self.receive()

    def close(self) -> None:
        for descriptor in self.passed:
            os.close(descriptor)
        self.socket.close()


@pytest.fixture
def raw(shared: "Daemon") -> Iterator[Raw]:
    made = Raw(shared.address)
    yield made
    made.close()


def refusal(reply: dict[str, object]) -> object:
    return reply["error"]


def test_the_table_comes_with_the_answer(raw: Raw) -> None:
    before = time.monotonic_ns() // 1_000
    _, attached = raw.ask(HELLO, ATTACH)
    assert attached[:2] == [SLOTS, LEASE_MS]
    assert before <= attached[2] <= time.monotonic_ns() // 1_000
    assert attached[3] == clock_id()
    [table] = raw.passed
    assert os.fstat(table).st_size == table_bytes(SLOTS)
    assert mapped_words(table, SLOTS)[LEASE] > time.monotonic_ns()


def test_it_comes_without_hello_too_and_ahead_of_what_was_sent_behind_it(raw: Raw) -> None:
    raw.send([ATTACH], [PING, PING])
    assert raw.receive()[0][:2] == [SLOTS, LEASE_MS]
    assert raw.receive() == [True, True]
    assert len(raw.passed) == 1


def test_sets_behind_it_that_are_made_together_are_answered_behind_it(raw: Raw) -> None:
    raw.send([HELLO, ATTACH], *[[["set", {"a": b"%d" % number}]] for number in range(20)], [["get", "a"]])
    assert raw.receive()[1][:2] == [SLOTS, LEASE_MS]
    assert len(raw.passed) == 1
    versions = [raw.receive()[0] for _ in range(20)]
    assert versions == sorted(versions)
    assert raw.receive() == [b"19"]


@pytest.mark.parametrize(
    "frames",
    [[[PING], [ATTACH]], [[["set", {"a": b""}]], [ATTACH]], [[PING, *[["get", "a"]] * 30_000], [ATTACH]]],
    ids=["of few", "put aside", "large"],
)
def test_only_the_first_frame_can_ask_for_it(raw: Raw, frames: list[list[Any]]) -> None:
    raw.send(*frames)
    raw.receive()
    assert refusal(raw.receive()[0]) == "bad_request"
    assert raw.ask(PING) == [True]
    assert raw.passed == []


def test_it_comes_once(raw: Raw) -> None:
    first, second = raw.ask(ATTACH, ATTACH)
    assert isinstance(first, list)
    assert refusal(second) == "bad_request"
    assert refusal(raw.ask(ATTACH)[0]) == "bad_request"
    assert len(raw.passed) == 1


def test_a_frame_that_is_done_in_slices_has_none(raw: Raw) -> None:
    scans = [["scan", "", None, 10]] * 3
    assert refusal(raw.ask(ATTACH, *scans)[0]) == "bad_request"
    assert raw.passed == []


def tables(daemon: "Daemon") -> int:
    """How many descriptors of its table a daemon has."""
    found = 0
    for descriptor in pathlib.Path(f"/proc/{daemon.process.pid}/fd").iterdir():
        try:
            found += "memfd:kvd-generations" in os.readlink(descriptor)
        except FileNotFoundError:
            pass  # closed meanwhile
    return found


@pytest.mark.parametrize("durable", [False, True], ids=["in memory", "durable"])
def test_the_daemon_keeps_no_descriptor_of_clients_that_have_gone(start: "Start", durable: bool) -> None:
    """Not even of those whose answer was held back, for a commit that was not on the disk, when they went."""
    daemon = start(durable=durable)
    writer = Raw(daemon.address)
    for number in range(100):
        some = [Raw(daemon.address) for _ in range(4)]
        writer.send([["set", {"a": b"%d" % number}]])
        for each in some:
            each.send([HELLO, ATTACH])
        some[0].receive()
        for each in some:
            each.close()
        writer.receive()
    eventually(lambda: tables(daemon) == OWN_DESCRIPTORS)
    writer.close()


def test_a_fetch_tells_slots_and_generations_once_there_is_a_table(start: "Start") -> None:
    daemon = start()
    plain = Raw(daemon.address)
    version = plain.ask(["set", {"a": b"1"}])[0]
    assert plain.ask(["fetch", ["a", "no"]]) == [[[b"1", version, None, None, None], [None, 0, None, None, None]]]
    attached = Raw(daemon.address)
    attached.ask(ATTACH)
    words = mapped_words(attached.passed[0], SLOTS)
    [[[value, told, slot, generation, deadline], [_, _, other, _, _]]] = plain.ask(["fetch", ["a", "no"]])
    assert (value, told, deadline) == (b"1", version, None)
    assert 0 <= slot < SLOTS
    assert 0 <= other < SLOTS
    assert words[8 + slot] == generation
    assert plain.ask(["fetch", ["a"], version]) == [[[b"1", version, None, None, None]]], "of the past there is none"
    plain.ask(["set", {"a": b"2"}])
    assert words[8 + slot] > generation
    assert plain.ask(["fetch", ["a"]])[0][0][3] == words[8 + slot]
    plain.close()
    attached.close()


def test_the_lease_is_kept_up_while_somebody_is_attached_and_rests_otherwise(start: "Start") -> None:
    daemon = start()
    first, second = Raw(daemon.address), Raw(daemon.address)
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
    # Nobody is attached: generations are raised all the same.
    plain = Raw(daemon.address)
    assert dict(plain.ask(["status"])[0])["near_caches"] == 0
    generation, slot = plain.ask(["fetch", ["a"]])[0][0][3], plain.ask(["fetch", ["a"]])[0][0][2]
    plain.ask(["set", {"a": b""}])
    assert words[8 + slot] > generation
    third = Raw(daemon.address)
    third.ask(ATTACH)
    assert words[LEASE] > time.monotonic_ns(), "it goes on for the next"
    for each in (plain, third):
        each.close()


def test_a_daemon_leaves_its_file_only_while_it_may_be_trusted(start: "Start") -> None:
    daemon = start()
    dirty = daemon.folder / "s.dirty"
    Raw(daemon.address).ask(PING)
    assert not dirty.exists(), "nobody is attached"
    attached = Raw(daemon.address)
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
    daemon.start()
    attached = Raw(daemon.address)
    attached.ask(ATTACH)
    daemon.kill()
    assert dirty.exists()


def test_without_a_place_for_its_file_nobody_is_attached(start: "Start") -> None:
    daemon = start()
    (daemon.folder / "s.dirty").mkdir()
    peer = Raw(daemon.address)
    hello, attached = peer.ask(HELLO, ATTACH)
    assert isinstance(hello, list)
    assert refusal(attached) == "internal"
    assert peer.ask(PING) == [True]
    assert peer.passed == []
    (daemon.folder / "s.dirty").rmdir()
    again = Raw(daemon.address)
    assert isinstance(again.ask(ATTACH)[0], list)


def test_the_answer_waits_for_the_disk_and_the_table_with_it(start: "Start") -> None:
    """Hello shows the current version; what comes with it must not get lost while it is held back."""
    daemon = start(durable=True)
    writer = Raw(daemon.address)
    for number in range(300):
        writer.send([["set", {"a": b"%d" % number}]])
        peer = Raw(daemon.address)
        _, attached = peer.ask(HELLO, ATTACH)
        assert attached[0] == SLOTS
        assert len(peer.passed) == 1
        peer.close()
        writer.receive()
