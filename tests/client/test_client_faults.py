"""The client against scripted servers that are slow, gone or stopping, or speak another protocol."""

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kv
from kv.errors import KvdError
from kv.wire.codecs import Codec
from tests.harness.scale import SCALE

if TYPE_CHECKING:
    from tests.harness.scripted_server import Line, ScriptedServer

    Scripted = Callable[..., ScriptedServer]
Connect = Callable[..., kv.Client]
LONG_S = 30
SHORT_S = 0.2

READ: Callable[[kv.Client], object] = lambda db: db.get("a")  # noqa: E731
WRITE: Callable[[kv.Client], object] = lambda db: db.set("a", b"1")  # noqa: E731
calls = pytest.mark.parametrize(("call", "writing"), [(READ, False), (WRITE, True)], ids=["read", "write"])
REPLIES: dict[Any, object] = {"get": b"right", "set": 7}


def serve(line: "Line") -> None:
    """Answer every request."""
    while (requests := line.request()) is not None:
        line.reply(*(REPLIES[request[0]] for request in requests))


def serve_one(line: "Line") -> None:
    """Answer one request, then hang up without a goodbye."""
    for request in line.request() or []:
        line.reply(REPLIES[request[0]])


def hang_up(line: "Line") -> None:
    """Hang up after the request, without a reply or a goodbye."""
    line.request()


def certainly_not_applied(error: KvdError) -> bool:
    return error.retryable and not error.maybe_committed


# ---------------------------------------------------------------------- time


@calls
def test_a_server_that_never_replies_costs_the_timeout(
    scripted: "Scripted", connect: Connect, call: Callable[[kv.Client], object], writing: bool, codec: Codec
) -> None:
    def silent(line: "Line") -> None:
        line.request()
        server.release.wait(LONG_S)

    server = scripted(silent)
    db = connect(server.address, timeout=SHORT_S, codec=codec)
    with pytest.raises(kv.TimedOut, match=r"within 0\.2 s") as failed:
        call(db)
    assert (failed.value.retryable, failed.value.maybe_committed) == (not writing, writing)


@calls
def test_a_late_reply_is_dropped_and_the_connection_stays_open(
    scripted: "Scripted", connect: Connect, call: Callable[[kv.Client], object], writing: bool, codec: Codec
) -> None:
    """Ephemeral keys and locks depend on the connection."""

    def late(line: "Line") -> None:
        line.request()
        timed_out.wait(LONG_S)
        line.reply(b"late")
        serve(line)

    timed_out = threading.Event()
    server = scripted(late)
    db = connect(server.address, timeout=SHORT_S, codec=codec)
    for _ in range(2):  # the second call is not even sent before the reply to the first
        with pytest.raises(kv.TimedOut):
            call(db)
    timed_out.set()
    db.settings = kv.ClientSettings(server.address, timeout=LONG_S, codec=codec)
    assert [db.get("a"), db.get("a")] == [b"right"] * 2
    assert server.connections == 1


def test_a_server_that_trickles_does_not_prolong_the_timeout(scripted: "Scripted", connect: Connect) -> None:
    sent = []

    def trickle(line: "Line") -> None:
        line.request()
        for byte in b"\0\0\xff\xff" + b"\x91" * 60_000:
            line.socket.sendall(bytes([byte]))
            sent.append(byte)
            if server.release.wait(SHORT_S / 20):
                return

    server = scripted(trickle)
    with pytest.raises(kv.TimedOut):
        connect(server.address, timeout=SHORT_S).get("a")
    assert len(sent) > 4, "bytes came all the time, and more than the header"


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64])
def test_a_reply_in_pieces_is_read(scripted: "Scripted", connect: Connect, size: int) -> None:
    def pieces(line: "Line") -> None:
        line.request()
        payload = msgspec.msgpack.encode([b"x" * 100])
        frame = len(payload).to_bytes(4, "big") + payload
        for at in range(0, len(frame), size):
            line.socket.sendall(frame[at : at + size])

    assert connect(scripted(pieces).address, timeout=LONG_S).get("a") == b"x" * 100


def test_a_server_that_does_not_read_costs_the_timeout_and_nothing_is_written(
    scripted: "Scripted", connect: Connect
) -> None:
    def deaf(line: "Line") -> None:
        server.release.wait(LONG_S)

    server = scripted(deaf)
    with pytest.raises(kv.TimedOut) as failed:
        connect(server.address, timeout=SHORT_S).set("a", b"x" * (8 * 2**20))
    assert certainly_not_applied(failed.value), "the frame was never sent as a whole"


def test_waiting_for_the_call_of_another_thread_counts_towards_the_timeout(
    scripted: "Scripted", connect: Connect
) -> None:
    received = threading.Event()

    def slow(line: "Line") -> None:
        line.request()
        received.set()
        server.release.wait(LONG_S)
        line.reply(b"late")
        serve(line)

    server = scripted(slow)
    db = connect(server.address, timeout=LONG_S)
    values: list[bytes | None] = []
    first = threading.Thread(target=lambda: values.append(db.get("a")))
    first.start()
    assert received.wait(LONG_S)
    db.settings = kv.ClientSettings(server.address, timeout=SHORT_S)
    with pytest.raises(kv.TimedOut) as failed:
        db.set("a", b"1")
    assert certainly_not_applied(failed.value), "it was never sent"
    server.release.set()
    first.join(LONG_S)
    assert values == [b"late"]
    db.settings = kv.ClientSettings(server.address, timeout=LONG_S)
    assert db.get("a") == b"right"


def test_without_a_timeout_a_reply_may_take_any_time(scripted: "Scripted", connect: Connect) -> None:
    def slow(line: "Line") -> None:
        line.request()
        server.release.wait(2 * SHORT_S)
        line.reply(b"at last")

    server = scripted(slow)
    assert connect(server.address, timeout=None).get("a") == b"at last"


# ---------------------------------------------------------------------- the connection ends


@calls
def test_a_connection_that_breaks_between_calls_is_not_noticed(
    scripted: "Scripted", connect: Connect, call: Callable[[kv.Client], object], writing: bool
) -> None:
    closed = threading.Event()

    def one_then_close(line: "Line") -> None:
        serve_one(line)
        line.socket.close()
        closed.set()

    server = scripted(one_then_close, serve)
    db = connect(server.address, timeout=LONG_S)
    db.get("a")
    assert closed.wait(LONG_S)
    assert call(db) in REPLIES.values()
    assert server.connections == 2


def test_a_read_whose_connection_breaks_is_sent_again(scripted: "Scripted", connect: Connect, codec: Codec) -> None:
    def one_then_hang_up(line: "Line") -> None:
        serve_one(line)
        line.request()

    server = scripted(one_then_hang_up, serve)
    db = connect(server.address, timeout=LONG_S, codec=codec)
    assert [db.get("a"), db.get("a")] == [b"right"] * 2
    assert server.connections == 2


def test_a_write_whose_connection_breaks_is_sent_again_under_the_same_id(
    scripted: "Scripted", connect: Connect, codec: Codec
) -> None:
    writes: list[Any] = []

    def one_then_hang_up(line: "Line") -> None:
        serve_one(line)
        writes.append(line.request())

    def serve_and_note(line: "Line") -> None:
        while (requests := line.request()) is not None:
            writes.append(requests)
            line.reply(7)

    server = scripted(one_then_hang_up, serve_and_note)
    db = connect(server.address, timeout=LONG_S, codec=codec)
    db.get("a")
    assert db.set("a", b"1") == 7
    assert (writes[0], server.connections) == (writes[1], 2)
    assert db.set("a", b"1") == 7
    ((name, entries, options),) = writes[0]
    assert (name, entries, len(options["id"]), options["since"]) == ("set", {"a": b"1"}, 16, 5)
    assert writes[2][0][2]["id"] != options["id"], "another write, another id"
    assert writes[2][0][2]["since"] == 7


def test_a_write_is_not_sent_again_to_another_store(scripted: "Scripted", connect: Connect, codec: Codec) -> None:
    received: list[Any] = []

    def one_then_hang_up(line: "Line") -> None:
        serve_one(line)
        line.request()

    def other_store(line: "Line") -> None:
        while (requests := line.request(store_id="other")) is not None:
            received.append(requests)
            line.reply(b"right")

    server = scripted(one_then_hang_up, other_store)
    db = connect(server.address, timeout=LONG_S, codec=codec)
    db.get("a")
    with pytest.raises(kv.CommitUnknown) as failed:
        db.set("a", b"1")
    assert (failed.value.retryable, failed.value.maybe_committed) == (False, True)
    assert not isinstance(failed.value, kv.Conflict | kv.TimedOut)
    assert received == []
    assert db.get("a") == b"right", "the client can still be used"


def test_a_write_is_unknown_if_the_store_was_never_known(scripted: "Scripted", connect: Connect) -> None:
    def silent(line: "Line") -> None:
        line.socket.recv(100_000)

    server = scripted(silent, serve)
    with pytest.raises(kv.CommitUnknown):
        connect(server.address, timeout=LONG_S).set("a", b"1")
    assert server.connections == 1


def test_a_first_write_is_sent_again_since_the_version_that_its_hello_told(
    scripted: "Scripted", connect: Connect, codec: Codec
) -> None:
    """Without a version, a daemon that has forgotten the id would make the write twice."""
    seen: list[Any] = []

    def one_then_hang_up(line: "Line") -> None:
        seen.append(line.request())

    def later(line: "Line") -> None:
        seen.append(line.request(version=90))
        line.reply({"error": "outcome_unknown", "message": "not remembered", "version": 90})
        line.request()

    db = connect(scripted(one_then_hang_up, later).address, timeout=LONG_S, codec=codec)
    with pytest.raises(kv.CommitUnknown, match="not remembered"):
        db.set("a", b"1")
    assert [write[0][2]["since"] for write in seen] == [None, 5]
    assert seen[0][0][2]["id"] == seen[1][0][2]["id"]


def test_a_write_of_ephemeral_keys_is_unknown_when_its_connection_breaks(
    scripted: "Scripted", connect: Connect
) -> None:
    """Made or not, the keys are gone. A result that says it was made would report keys that do not exist."""

    def one_then_hang_up(line: "Line") -> None:
        serve_one(line)
        line.request()

    server = scripted(one_then_hang_up, serve)
    db = connect(server.address, timeout=LONG_S)
    db.get("a")
    with pytest.raises(kv.CommitUnknown, match="ephemeral"):
        db.set("a", b"1", ephemeral=True)


def test_a_first_try_with_too_old_a_since_is_repeated_with_a_newer_one(scripted: "Scripted", connect: Connect) -> None:
    """The requests after it in its frame are sent again, too, so that they still run after the write."""
    seen: list[Any] = []

    def forgetful(line: "Line") -> None:
        line.request()
        line.reply(b"first")
        for requests in iter(line.request, None):
            options = requests[0][2]
            seen.append((options["id"], options["since"]))
            is_new = options["since"] >= 90
            outcome = 91 if is_new else {"error": "outcome_unknown", "message": "", "version": 90}
            line.reply(outcome, *[b"new" if is_new else b"old"] * len(requests[1:]))

    db = connect(scripted(forgetful).address, timeout=LONG_S)
    assert db.get("a") == b"first"
    with db.pipeline() as pipeline:
        written, read = pipeline.set("a", b"1"), pipeline.get("a")
    assert (written.result(), read.result()) == (91, b"new")
    assert seen == [(seen[0][0], 5), (seen[0][0], 90)], "the same id"
    assert db.set("a", b"1") == 91
    assert seen[2][1] == 91


def test_a_second_try_with_too_old_a_since_is_unknown(scripted: "Scripted", connect: Connect) -> None:
    def one_then_hang_up(line: "Line") -> None:
        serve_one(line)
        line.request()

    def forgetful(line: "Line") -> None:
        line.request()
        line.reply({"error": "outcome_unknown", "message": "not remembered", "version": 90})
        line.request()

    db = connect(scripted(one_then_hang_up, forgetful).address, timeout=LONG_S)
    db.get("a")
    with pytest.raises(kv.CommitUnknown, match="not remembered"):
        db.set("a", b"1")


@calls
def test_a_server_that_always_hangs_up_is_not_tried_for_ever(
    scripted: "Scripted", connect: Connect, call: Callable[[kv.Client], object], writing: bool
) -> None:
    server = scripted(hang_up)
    with pytest.raises(kv.ConnectionLost) as failed:
        call(connect(server.address, timeout=LONG_S))
    assert (failed.value.retryable, failed.value.maybe_committed) == (not writing, writing)
    assert server.connections <= 4


@calls
@pytest.mark.parametrize("cut", [1, 3, 4, 5])
def test_a_cut_reply_is_not_a_reply(
    scripted: "Scripted", connect: Connect, call: Callable[[kv.Client], object], writing: bool, cut: int
) -> None:
    def half(line: "Line") -> None:
        line.request()
        line.socket.sendall(b"\0\0\0\2\x91\x07"[:cut])

    with pytest.raises(kv.ConnectionLost) as failed:
        call(connect(scripted(half).address, timeout=LONG_S))
    assert failed.value.maybe_committed == writing


# ---------------------------------------------------------------------- goodbye


@calls
def test_after_a_goodbye_the_request_is_sent_again(
    scripted: "Scripted", connect: Connect, call: Callable[[kv.Client], object], writing: bool, codec: Codec
) -> None:
    """A write as well: the server says that the frames without a reply did not run."""

    def goodbye(line: "Line") -> None:
        line.request()
        line.goodbye()

    server = scripted(goodbye, goodbye, serve)
    assert call(connect(server.address, timeout=LONG_S, codec=codec)) in REPLIES.values()
    assert server.connections == 3


@calls
def test_a_goodbye_after_a_reply_concerns_the_next_request(
    scripted: "Scripted", connect: Connect, call: Callable[[kv.Client], object], writing: bool
) -> None:
    def reply_and_goodbye(line: "Line") -> None:
        line.request()
        reply, goodbye = msgspec.msgpack.encode([b"right"]), msgspec.msgpack.encode({"error": "shutting_down"})
        line.socket.sendall(b"".join(len(each).to_bytes(4, "big") + each for each in (reply, goodbye)))

    server = scripted(reply_and_goodbye, serve)
    db = connect(server.address, timeout=LONG_S)
    assert db.get("a") == b"right"
    assert call(db) in REPLIES.values()
    assert server.connections == 2


@calls
def test_a_client_that_is_still_sending_hears_the_goodbye(
    scripted: "Scripted", connect: Connect, call: Callable[[kv.Client], object], writing: bool
) -> None:
    def goodbye_at_once(line: "Line") -> None:
        line.goodbye()

    server = scripted(goodbye_at_once, serve)
    db = connect(server.address, timeout=LONG_S)
    assert db.set("a", b"x" * (4 * 2**20)) == 7
    assert server.connections == 2


def test_a_server_that_only_says_goodbye_costs_the_timeout(scripted: "Scripted", connect: Connect) -> None:
    def goodbye(line: "Line") -> None:
        line.request()
        line.goodbye()

    server = scripted(goodbye)
    with pytest.raises(KvdError) as failed:
        connect(server.address, timeout=SHORT_S).set("a", b"1")
    assert not failed.value.maybe_committed or isinstance(failed.value, kv.TimedOut)
    assert server.connections > 1


def test_a_refusal_of_the_connection_is_the_error_of_the_call(scripted: "Scripted", connect: Connect) -> None:
    def busy(line: "Line") -> None:
        line.goodbye("busy")

    server = scripted(busy, serve)
    db = connect(server.address, timeout=LONG_S)
    with pytest.raises(kv.Busy) as failed:
        db.set("a", b"1")
    assert certainly_not_applied(failed.value)
    assert db.get("a") == b"right"


def test_a_refused_frame_did_not_run_and_its_connection_is_closed(scripted: "Scripted", connect: Connect) -> None:
    def refuse(line: "Line") -> None:
        line.request()
        line.goodbye("bad_request")
        line.request()

    server = scripted(refuse, serve)
    db = connect(server.address, timeout=LONG_S)
    with pytest.raises(kv.Refused) as failed:
        db.set("a", b"1")
    assert (failed.value.code, failed.value.maybe_committed) == ("bad_request", False)
    assert db.get("a") == b"right"


# ---------------------------------------------------------------------- other protocols


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\xff\xff\xff\xff", b"\x40\x00\x00\x01" + b"x" * 100,
        b"\0\0\0\0", b"\0\0\0\1\xc1", b"\0\0\0\1\xc0", b"\0\0\0\1\x07", b"\0\0\0\1\x90", b"\0\0\0\3\x92\xc0\xc0",
        b"\0\0\0\2\xc0\xc0", b"\0\0\0\2\x91\x07", b"\0\0\0\5\x91\xa4text", b"\0\0\0\5\xdd\xff\xff\xff\xff",
        b"\0\0\0\2\xa1\xff", b"\0\1\0\0" + b"\x91" * 65_536,
    ],
    ids=lambda data: data[:12].hex(),
)  # fmt: skip
def test_a_peer_with_another_protocol_is_a_protocol_error(
    scripted: "Scripted", connect: Connect, data: bytes, codec: Codec
) -> None:
    def garbage(line: "Line") -> None:
        line.request()
        line.socket.sendall(data)
        line.request()

    server = scripted(garbage, serve)
    db = connect(server.address, timeout=LONG_S, codec=codec)
    with pytest.raises(kv.ProtocolError) as failed:
        db.get("a")
    assert failed.value.code == "bad_reply"
    assert not failed.value.retryable
    assert db.get("a") == b"right"


def test_a_reply_too_many_ends_the_connection(scripted: "Scripted", connect: Connect) -> None:
    """Two replies to one request: the second one would shift every later reply."""

    def twice(line: "Line") -> None:
        line.request()
        line.reply(b"1", b"2")
        line.request()

    server = scripted(twice, serve)
    db = connect(server.address, timeout=LONG_S)
    with pytest.raises(kv.ProtocolError):
        db.get("a")
    assert db.get("a") == b"right"
    assert server.connections == 2


def test_arbitrary_replies_raise_only_kvd_errors(scripted: "Scripted", connect: Connect, codec: Codec) -> None:
    reply = [b""]

    def echo(line: "Line") -> None:
        while line.request() is not None:
            line.payload(reply[0])

    db = connect(scripted(echo).address, timeout=LONG_S, codec=codec)
    every_call: list[Callable[[], object]] = [
        lambda: db.get("a"), lambda: db.get_many(["a"]), lambda: db.set("a", b""), lambda: db.delete("a"),
        lambda: next(db.scan(), None), db.ping, db.metrics, db.status, db.reload, db.shutdown,
    ]  # fmt: skip
    texts, numbers = st.text(max_size=5), st.integers(-(2**63), 2**64 - 1)
    plain = st.none() | st.booleans() | numbers | st.floats() | texts | st.binary(max_size=5)
    things = st.recursive(plain, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=8)
    likely = st.sampled_from(
        [None, b"", 7, True, [7, 1], [b""], [["a", 1]], [[], None], [[["a", b"", 1]], None], ["text"]]
    )
    errors = st.fixed_dictionaries({"error": plain.filter(lambda code: code != "shutting_down"), "message": plain})
    payloads = st.one_of(
        st.binary(max_size=30), (things | errors).map(msgspec.msgpack.encode),
        st.lists(likely, min_size=1, max_size=1).map(msgspec.msgpack.encode),
        st.lists(things | errors, min_size=1, max_size=1).map(msgspec.msgpack.encode),
    )  # fmt: skip
    outcomes = {True: 0, False: 0}

    @settings(
        max_examples=max(50, int(200 * SCALE)), deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )  # fmt: skip
    @given(payloads, st.sampled_from(every_call))
    def run(payload: bytes, call: Callable[[], object]) -> None:
        reply[0] = payload
        try:
            call()
        except KvdError:
            outcomes[False] += 1
        else:
            outcomes[True] += 1

    run()
    assert min(outcomes.values()) >= 1, outcomes


# ---------------------------------------------------------------------- descriptors


def test_no_failure_leaves_a_descriptor_open(scripted: "Scripted", connect: Connect) -> None:
    def descriptors() -> int:
        return sum(1 for link in os.scandir("/proc/self/fd") if "socket" in _target(link.path))

    server = scripted(hang_up)
    before = None
    for number in range(40):
        with pytest.raises(kv.ConnectionLost):
            connect(server.address, timeout=LONG_S).get("a")
        with pytest.raises(kv.Unavailable):
            connect("/nonexistent").get("a")
        if number == 10:
            before = descriptors()
    assert before is not None
    assert descriptors() <= before + 5, "a script may still be closing its end"


def _target(path: str) -> str:
    try:
        return os.readlink(path)
    except FileNotFoundError:
        return ""
