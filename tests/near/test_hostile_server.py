"""A false daemon may send any table: a client refuses an invalid one, and is not killed by it."""

import fcntl
import gc
import mmap
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

import kv
from kvd.protocol.near_cache import LEASE_MS, MAGIC, MAGIC_WORD, MAX_SLOTS, SEALS, SLOTS_WORD, clock_id, table_bytes
from tests.harness.waiting import DEADLINE_S, eventually
from tests.near.test_client import Driven

SLOTS = 16
SHRINK, GROW, FUTURE_WRITE, SEAL = 0x02, 0x04, 0x10, 0x01

Attached = tuple[list[Any], list[int]]  # the reply to attach, and descriptors


class Impostor:
    """A false daemon: answers hello and attach with the result of ``attach``, and each fetched key with ``entry``."""

    def __init__(self, address: str, attach: Callable[[], Attached], entry: list[Any], error: object = None) -> None:
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(address)
        self._listening.listen()
        self._attach, self._entry, self._error = attach, entry, error
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connected, _ = self._listening.accept()
            except OSError:
                return
            with connected:
                self._answer(connected)

    def _answer(self, connected: socket.socket) -> None:
        while (head := connected.recv(4)) and len(head) == 4:
            requests = msgspec.msgpack.decode(connected.recv(int.from_bytes(head, "big")))
            descriptors: list[int] = []
            replies: Any = [[self._entry for _ in request[1]] for request in requests if request[0] == "fetch"]
            if requests[0][0] == "hello":
                replies = [[1, "0", "store", 5, {}]]
                if len(requests) > 1:
                    reply, descriptors = self._attach()
                    replies.append(reply)
                if self._error is not None:
                    replies = self._error
            payload = msgspec.msgpack.encode(replies)
            data = len(payload).to_bytes(4, "big") + payload
            if descriptors:
                socket.send_fds(connected, [data], descriptors)
                for descriptor in descriptors:
                    os.close(descriptor)
            else:
                connected.sendall(data)

    def end(self) -> None:
        """Stop listening."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join(DEADLINE_S)
        self._listening.close()


Impose = Callable[..., Any]


@pytest.fixture(params=["blocking", "asyncio"])
def impose(request: pytest.FixtureRequest) -> Iterator[Impose]:
    """Makes clients of impostors, of either kind."""
    ends: list[Callable[[], None]] = []
    with tempfile.TemporaryDirectory() as folder:

        def make(attach: Callable[[], Attached], entry: list[Any] | None = None, error: object = None) -> Any:  # noqa: ANN401
            address = f"{folder}/s"
            impostor = Impostor(address, attach, entry or [b"1", 1, 0, 0, None], error)
            if request.param == "asyncio":
                driven = Driven(address, True)
                ends.extend([driven.end, impostor.end])
                return driven
            client = kv.connect(address, timeout=DEADLINE_S, near_cache=True)
            ends.extend([client.close, impostor.end])
            return client

        yield make
        for end in ends:
            end()


def answer(slots: object = SLOTS) -> list[Any]:
    return [slots, LEASE_MS, time.monotonic_ns() // 1_000, clock_id()]


def memfd(size: int = table_bytes(SLOTS), seals: int = SEALS, magic: int = MAGIC, slots: int = SLOTS) -> int:
    descriptor = os.memfd_create("impostor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    if size >= table_bytes(0):
        with mmap.mmap(descriptor, size) as words:
            words[8 * MAGIC_WORD : 8 * MAGIC_WORD + 8] = magic.to_bytes(8, "little")
            words[8 * SLOTS_WORD : 8 * SLOTS_WORD + 8] = slots.to_bytes(8, "little")
            words[0:8] = (time.monotonic_ns() + 10**10).to_bytes(8, "little")
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def file() -> int:
    with tempfile.TemporaryFile() as temporary:
        temporary.truncate(table_bytes(SLOTS))
        return os.dup(temporary.fileno())


FOREIGN: dict[str, Callable[[], list[int]]] = {
    "nothing": list,
    "a device": lambda: [os.open("/dev/null", os.O_RDWR)],
    "zeros without end": lambda: [os.open("/dev/zero", os.O_RDWR)],
    "a file": lambda: [file()],
    "a directory": lambda: [os.open("/", os.O_RDONLY)],
    "a pipe": lambda: [os.pipe()[0]],
    "a socket": lambda: [socket.socket(socket.AF_UNIX).detach()],
    "a name only": lambda: [os.open("/", os.O_PATH)],
    "unsealed": lambda: [memfd(seals=0)],
    "one that can shrink": lambda: [memfd(seals=GROW | FUTURE_WRITE | SEAL)],
    "one that can grow": lambda: [memfd(seals=SHRINK | FUTURE_WRITE | SEAL)],
    "one that can be written": lambda: [memfd(seals=SHRINK | GROW | SEAL)],
    "one that can be sealed": lambda: [memfd(seals=SHRINK | GROW | FUTURE_WRITE)],
    "an empty one": lambda: [memfd(size=0)],
    "one of a page": lambda: [memfd(size=4096)],
    "a shrunk one": lambda: [memfd(size=table_bytes(SLOTS) - 8)],
    "a grown one": lambda: [memfd(size=table_bytes(SLOTS) + 8)],
    "another's": lambda: [memfd(magic=MAGIC + 1)],
    "one of other slots": lambda: [memfd(slots=SLOTS * 2)],
}


def tables() -> int:
    """Return how many descriptors of tables this process has, including the impostor's."""
    gc.collect()  # tables that the errors of other tests refer to
    names = []
    for number in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:
            pass  # that of the listing itself
    return sum("memfd:impostor" in name for name in names)


@pytest.mark.parametrize("what", FOREIGN)
def test_an_invalid_table_is_refused(impose: Impose, what: str) -> None:
    db = impose(lambda: (answer(), FOREIGN[what]()))
    for _ in range(2):
        with pytest.raises(kv.ProtocolError):
            db.get("a")
    assert not db.near_cache.stats().attached


@pytest.mark.parametrize("slots", [0, -1, 1, MAX_SLOTS + 1, 2**63, "16", None, 16.0])
def test_a_wrong_number_of_slots_is_refused(impose: Impose, slots: object) -> None:
    db = impose(lambda: (answer(slots), [memfd()]))
    with pytest.raises(kv.ProtocolError):
        db.get("a")


@pytest.mark.parametrize("attached", [[], [SLOTS], [SLOTS, LEASE_MS, 0], True, None, "yes"])
def test_a_malformed_reply_to_attach_is_refused(impose: Impose, attached: object) -> None:
    db = impose(lambda: (attached, [memfd()]))
    with pytest.raises(kv.ProtocolError):
        db.get("a")


def test_no_descriptor_of_a_refused_table_is_kept(impose: Impose) -> None:
    db = impose(lambda: (answer(), [memfd(seals=0) for _ in range(20)]))
    for _ in range(5):
        with pytest.raises(kv.ProtocolError):
            db.get("a")
    eventually(lambda: tables() == 0)


def test_of_many_descriptors_the_first_is_used_and_no_other_is_kept(impose: Impose) -> None:
    db = impose(lambda: (answer(), [memfd(), *(memfd(seals=0) for _ in range(20))]))
    assert db.get("a") == b"1"
    assert db.near_cache.stats().attached
    eventually(lambda: tables() == 1)
    db.close()
    eventually(lambda: tables() == 0)


@pytest.mark.parametrize("difference_us", [-1_000_000_000, -1_000_000, 1_000_000, 1_000_000_000])
def test_a_daemon_with_other_clocks_is_not_trusted(impose: Impose, difference_us: int) -> None:
    def attach() -> Attached:
        slots, lease_ms, now, clock = answer()
        return [slots, lease_ms, now + difference_us, clock], [memfd()]

    db = impose(attach)
    assert db.get("a") == db.get("a") == b"1"
    stats = db.near_cache.stats()
    assert (stats.attached, stats.hits) == (False, 0)


@pytest.mark.parametrize("slot", [-1, SLOTS, 2**40])
def test_a_slot_outside_the_table_makes_no_entry(impose: Impose, slot: int) -> None:
    db = impose(lambda: (answer(), [memfd()]), [b"1", 1, slot, 0, None])
    assert db.get("a") == db.get("a") == b"1"
    assert db.near_cache.stats().hits == 0


@pytest.mark.parametrize(
    "entry", [[b"1"], [b"1", 1, 0, 0], [b"1", 1, "0", 0, None], [b"1", 1, 0, b"", None], [b"1", 1, 0, 0, "x"], [7] * 5]
)
def test_a_malformed_entry_is_refused(impose: Impose, entry: list[Any]) -> None:
    db = impose(lambda: (answer(), [memfd()]), entry)
    with pytest.raises(kv.ProtocolError):
        db.get("a")
    with pytest.raises(kv.ProtocolError):
        db.get_many(["a", "b"])
    assert db.near_cache.stats().entries == 0


def test_an_older_daemon_is_an_error_that_says_so(impose: Impose) -> None:
    """A daemon that does not know attach refuses the whole frame."""
    refusal = {"error": "bad_request", "message": "Invalid value 'attach'"}
    db = impose(lambda: (answer(), []), error=refusal)
    for _ in range(2):
        with pytest.raises(kv.KvdError, match=r"older one.*without near_cache") as never:
            db.get("a")
        assert never.value.code == "near_cache"


def test_a_daemon_without_near_caches_is_an_error_that_says_so(impose: Impose) -> None:
    refusal = {"error": "bad_request", "message": "there is no near cache here"}
    db = impose(lambda: (refusal, []))  # type: ignore[arg-type, return-value]
    with pytest.raises(kv.KvdError, match="there is no near cache here; connect without near_cache"):
        db.get("a")


def test_a_client_that_cannot_attach_now_works_without_and_has_the_reason(impose: Impose) -> None:
    refusal = {"error": "internal", "message": "no memory"}
    db = impose(lambda: (refusal, []))  # type: ignore[arg-type, return-value]
    assert db.get("a") == db.get("a") == b"1"
    assert db.near_cache.stats().reason == "no memory"
    assert not db.near_cache.stats().attached


def test_a_busy_daemon_is_an_error_that_says_so(impose: Impose) -> None:
    db = impose(lambda: (answer(), []), error={"error": "busy", "message": "too many"})
    with pytest.raises(kv.Busy, match="too many"):
        db.get("a")
