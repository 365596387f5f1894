"""What the client makes of servers that are slow, gone, stopping, or no kvd at all: scripted ones."""

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
LONG_S = 30
SHORT_S = 0.2

READ: Callable[[kv.Client], object] = lambda db: db.get("a")  # noqa: E731
WRITE: Callable[[kv.Client], object] = lambda db: db.set("a", b"1")  # noqa: E731
calls = pytest.mark.parametrize(("call", "writing"), [(READ, False), (WRITE, True)], ids=["read", "write"])
ANSWERS: dict[Any, object] = {"get": b"right", "set": 7}


def serve(line: "Line") -> None:
    """As a server should."""
    while (requests := line.request()) is not None:
        line.reply(*(ANSWERS[request[0]] for request in requests))


def serve_one(line: "Line") -> None:
    """One request as it should, then hang up without a word."""
    for request in line.request() or []:
        line.reply(ANSWERS[request[0]])


def hang_up(line: "Line") -> None:
    """Hang up without a word after the request."""
    line.request()


def certainly_not_applied(error: KvdError) -> bool:
    return error.retryable and not error.maybe_committed


# ---------------------------------------------------------------------- time


@calls
def test_a_server_that_never_answers_costs_the_timeout(
    scripted: "Scripted", call: Callable[[kv.Client], object], writing: bool, codec: Codec
) -> None:
    def silent(line: "Line") -> None:
        line.request()
        server.release.wait(LONG_S)

    server = scripted(silent)
    db = kv.connect(server.address, timeout=SHORT_S, codec=codec)
    with pytest.raises(kv.TimedOut, match=r"within 0\.2 s") as failed:
        call(db)
    assert (failed.value.retryable, failed.value.maybe_committed) == (not writing, writing)


@calls
def test_a_late_answer_is_thrown_away_and_the_connection_goes_on(
    scripted: "Scripted", call: Callable[[kv.Client], object], writing: bool, codec: Codec
) -> None:
    """Ephemeral keys and locks hang on it."""

    def late(line: "Line") -> None:
        line.request()
        timed_out.wait(LONG_S)
        line.reply(b"late")
        serve(line)

    timed_out = threading.Event()
    server = scripted(late)
    db = kv.connect(server.address, timeout=SHORT_S, codec=codec)
    for _ in range(2):  # the second one is not even sent before the first one's answer
        with pytest.raises(kv.TimedOut):
            call(db)
    timed_out.set()
    db.settings = kv.ClientSettings(server.address, timeout=LONG_S, codec=codec)
    assert [db.get("a"), db.get("a")] == [b"right"] * 2
    assert server.connections == 1


def test_a_server_that_trickles_does_not_prolong_the_timeout(scripted: "Scripted") -> None:
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
        kv.connect(server.address, timeout=SHORT_S).get("a")
    assert len(sent) > 4, "bytes came all the time, and more than the length"


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64])
def test_an_answer_in_pieces_is_an_answer(scripted: "Scripted", size: int) -> None:
    def pieces(line: "Line") -> None:
        line.request()
        payload = msgspec.msgpack.encode([b"x" * 100])
        frame = len(payload).to_bytes(4, "big") + payload
        for at in range(0, len(frame), size):
            line.socket.sendall(frame[at : at + size])

    assert kv.connect(scripted(pieces).address, timeout=LONG_S).get("a") == b"x" * 100


def test_a_server_that_does_not_read_costs_the_timeout_and_nothing_was_done(scripted: "Scripted") -> None:
    def deaf(line: "Line") -> None:
        server.release.wait(LONG_S)

    server = scripted(deaf)
    with pytest.raises(kv.TimedOut) as failed:
        kv.connect(server.address, timeout=SHORT_S).set("a", b"x" * (8 * 2**20))
    assert certainly_not_applied(failed.value), "the frame never left as a whole"


def test_waiting_for_another_threads_call_counts_towards_the_time(scripted: "Scripted") -> None:
    asked = threading.Event()

    def slow(line: "Line") -> None:
        line.request()
        asked.set()
        server.release.wait(LONG_S)
        line.reply(b"late")
        serve(line)

    server = scripted(slow)
    db = kv.connect(server.address, timeout=LONG_S)
    answers: list[bytes | None] = []
    first = threading.Thread(target=lambda: answers.append(db.get("a")))
    first.start()
    assert asked.wait(LONG_S)
    db.settings = kv.ClientSettings(server.address, timeout=SHORT_S)
    with pytest.raises(kv.TimedOut) as failed:
        db.set("a", b"1")
    assert certainly_not_applied(failed.value), "it was never sent"
    server.release.set()
    first.join(LONG_S)
    assert answers == [b"late"]
    db.settings = kv.ClientSettings(server.address, timeout=LONG_S)
    assert db.get("a") == b"right"


def test_without_a_timeout_an_answer_may_take_its_time(scripted: "Scripted") -> None:
    def slow(line: "Line") -> None:
        line.request()
        server.release.wait(2 * SHORT_S)
        line.reply(b"at last")

    server = scripted(slow)
    assert kv.connect(server.address, timeout=None).get("a") == b"at last"


# ---------------------------------------------------------------------- the connection ends


@calls
def test_a_connection_that_was_lost_between_calls_is_not_noticed(
    scripted: "Scripted", call: Callable[[kv.Client], object], writing: bool
) -> None:
    closed = threading.Event()

    def one_then_close(line: "Line") -> None:
        serve_one(line)
        line.socket.close()
        closed.set()

    server = scripted(one_then_close, serve)
    db = kv.connect(server.address, timeout=LONG_S)
    db.get("a")
    assert closed.wait(LONG_S)
    assert call(db) in ANSWERS.values()
    assert server.connections == 2


def test_a_read_whose_connection_breaks_is_sent_again(scripted: "Scripted", codec: Codec) -> None:
    def one_then_hang_up(line: "Line") -> None:
        serve_one(line)
        line.request()

    server = scripted(one_then_hang_up, serve)
    db = kv.connect(server.address, timeout=LONG_S, codec=codec)
    assert [db.get("a"), db.get("a")] == [b"right"] * 2
    assert server.connections == 2


def test_a_write_whose_connection_breaks_is_sent_again_under_the_same_id(scripted: "Scripted", codec: Codec) -> None:
    written: list[Any] = []

    def one_then_hang_up(line: "Line") -> None:
        serve_one(line)
        written.append(line.request())

    def serve_and_note(line: "Line") -> None:
        while (requests := line.request()) is not None:
            written.append(requests)
            line.reply(7)

    server = scripted(one_then_hang_up, serve_and_note)
    db = kv.connect(server.address, timeout=LONG_S, codec=codec)
    db.get("a")
    assert db.set("a", b"1") == 7
    assert (written[0], server.connections) == (written[1], 2)
    assert db.set("a", b"1") == 7
    ((name, entries, how),) = written[0]
    assert (name, entries, len(how["id"]), how["since"]) == ("set", {"a": b"1"}, 16, 5)
    assert written[2][0][2]["id"] != how["id"], "another write, another id"
    assert written[2][0][2]["since"] == 7


def test_a_write_is_not_sent_again_to_another_store(scripted: "Scripted", codec: Codec) -> None:
    asked: list[Any] = []

    def one_then_hang_up(line: "Line") -> None:
        serve_one(line)
        line.request()

    def other_store(line: "Line") -> None:
        while (requests := line.request(store_id="other")) is not None:
            asked.append(requests)
            line.reply(b"right")

    server = scripted(one_then_hang_up, other_store)
    db = kv.connect(server.address, timeout=LONG_S, codec=codec)
    db.get("a")
    with pytest.raises(kv.CommitUnknown) as failed:
        db.set("a", b"1")
    assert (failed.value.retryable, failed.value.maybe_committed) == (False, True)
    assert not isinstance(failed.value, kv.Conflict | kv.TimedOut)
    assert asked == []
    assert db.get("a") == b"right", "the client goes on"


def test_a_write_is_unknown_if_the_store_was_never_known(scripted: "Scripted") -> None:
    def silent(line: "Line") -> None:
        line.socket.recv(100_000)

    server = scripted(silent, serve)
    with pytest.raises(kv.CommitUnknown):
        kv.connect(server.address, timeout=LONG_S).set("a", b"1")
    assert server.connections == 1


def test_a_write_of_ephemeral_keys_is_unknown_when_its_connection_breaks(scripted: "Scripted") -> None:
    """Made or not, the keys are gone: an answer that it was made would tell of keys that are not there."""

    def one_then_hang_up(line: "Line") -> None:
        serve_one(line)
        line.request()

    server = scripted(one_then_hang_up, serve)
    db = kv.connect(server.address, timeout=LONG_S)
    db.get("a")
    with pytest.raises(kv.CommitUnknown, match="ephemeral"):
        db.set("a", b"1", ephemeral=True)


def test_a_first_try_that_nobody_remembers_back_to_is_made_with_a_younger_since(scripted: "Scripted") -> None:
    """And what stood behind it in its frame is asked again, so that it still runs after the write."""
    seen: list[Any] = []

    def forgetful(line: "Line") -> None:
        line.request()
        line.reply(b"first")
        for requests in iter(line.request, None):
            how = requests[0][2]
            seen.append((how["id"], how["since"]))
            young = how["since"] >= 90
            written = 91 if young else {"error": "outcome_unknown", "message": "", "version": 90}
            line.reply(written, *[b"new" if young else b"old"] * len(requests[1:]))

    db = kv.connect(scripted(forgetful).address, timeout=LONG_S)
    assert db.get("a") == b"first"
    with db.pipeline() as pipeline:
        written, read = pipeline.set("a", b"1"), pipeline.get("a")
    assert (written.result(), read.result()) == (91, b"new")
    assert seen == [(seen[0][0], 5), (seen[0][0], 90)], "the same id"
    assert db.set("a", b"1") == 91
    assert seen[2][1] == 91


def test_a_second_try_that_nobody_remembers_is_unknown(scripted: "Scripted") -> None:
    def one_then_hang_up(line: "Line") -> None:
        serve_one(line)
        line.request()

    def forgetful(line: "Line") -> None:
        line.request()
        line.reply({"error": "outcome_unknown", "message": "not remembered", "version": 90})
        line.request()

    db = kv.connect(scripted(one_then_hang_up, forgetful).address, timeout=LONG_S)
    db.get("a")
    with pytest.raises(kv.CommitUnknown, match="not remembered"):
        db.set("a", b"1")


@calls
def test_a_server_that_always_hangs_up_is_not_asked_for_ever(
    scripted: "Scripted", call: Callable[[kv.Client], object], writing: bool
) -> None:
    server = scripted(hang_up)
    with pytest.raises(kv.ConnectionLost) as failed:
        call(kv.connect(server.address, timeout=LONG_S))
    assert (failed.value.retryable, failed.value.maybe_committed) == (not writing, writing)
    assert server.connections <= 4


@calls
@pytest.mark.parametrize("cut", [1, 3, 4, 5])
def test_an_answer_that_is_cut_is_none(
    scripted: "Scripted", call: Callable[[kv.Client], object], writing: bool, cut: int
) -> None:
    def half(line: "Line") -> None:
        line.request()
        line.socket.sendall(b"\0\0\0\2\x91\x07"[:cut])

    with pytest.raises(kv.ConnectionLost) as failed:
        call(kv.connect(scripted(half).address, timeout=LONG_S))
    assert failed.value.maybe_committed == writing


# ---------------------------------------------------------------------- goodbye


@calls
def test_after_a_goodbye_the_request_is_sent_again(
    scripted: "Scripted", call: Callable[[kv.Client], object], writing: bool, codec: Codec
) -> None:
    """Also a write: the server says that what it has not answered did not run."""

    def goodbye(line: "Line") -> None:
        line.request()
        line.goodbye()

    server = scripted(goodbye, goodbye, serve)
    assert call(kv.connect(server.address, timeout=LONG_S, codec=codec)) in ANSWERS.values()
    assert server.connections == 3


@calls
def test_a_goodbye_behind_an_answer_belongs_to_the_next_request(
    scripted: "Scripted", call: Callable[[kv.Client], object], writing: bool
) -> None:
    def answer_and_goodbye(line: "Line") -> None:
        line.request()
        answer, goodbye = msgspec.msgpack.encode([b"right"]), msgspec.msgpack.encode({"error": "shutting_down"})
        line.socket.sendall(b"".join(len(each).to_bytes(4, "big") + each for each in (answer, goodbye)))

    server = scripted(answer_and_goodbye, serve)
    db = kv.connect(server.address, timeout=LONG_S)
    assert db.get("a") == b"right"
    assert call(db) in ANSWERS.values()
    assert server.connections == 2


@calls
def test_a_goodbye_is_heard_also_by_who_is_still_sending(
    scripted: "Scripted", call: Callable[[kv.Client], object], writing: bool
) -> None:
    def goodbye_at_once(line: "Line") -> None:
        line.goodbye()

    server = scripted(goodbye_at_once, serve)
    db = kv.connect(server.address, timeout=LONG_S)
    assert db.set("a", b"x" * (4 * 2**20)) == 7
    assert server.connections == 2


def test_a_server_that_only_says_goodbye_costs_the_timeout(scripted: "Scripted") -> None:
    def goodbye(line: "Line") -> None:
        line.request()
        line.goodbye()

    server = scripted(goodbye)
    with pytest.raises(KvdError) as failed:
        kv.connect(server.address, timeout=SHORT_S).set("a", b"1")
    assert not failed.value.maybe_committed or isinstance(failed.value, kv.TimedOut)
    assert server.connections > 1


def test_a_refusal_of_the_connection_is_the_refusal_of_the_call(scripted: "Scripted") -> None:
    def busy(line: "Line") -> None:
        line.goodbye("busy")

    server = scripted(busy, serve)
    db = kv.connect(server.address, timeout=LONG_S)
    with pytest.raises(kv.Busy) as failed:
        db.set("a", b"1")
    assert certainly_not_applied(failed.value)
    assert db.get("a") == b"right"


def test_a_refused_frame_did_not_run_and_its_connection_is_left(scripted: "Scripted") -> None:
    def refuse(line: "Line") -> None:
        line.request()
        line.goodbye("bad_request")
        line.request()

    server = scripted(refuse, serve)
    db = kv.connect(server.address, timeout=LONG_S)
    with pytest.raises(kv.Refused) as failed:
        db.set("a", b"1")
    assert (failed.value.code, failed.value.maybe_committed) == ("bad_request", False)
    assert db.get("a") == b"right"


# ---------------------------------------------------------------------- what is no kvd


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\xff\xff\xff\xff", b"\x40\x00\x00\x01" + b"x" * 100,
        b"\0\0\0\0", b"\0\0\0\1\xc1", b"\0\0\0\1\xc0", b"\0\0\0\1\x07", b"\0\0\0\1\x90", b"\0\0\0\3\x92\xc0\xc0",
        b"\0\0\0\2\xc0\xc0", b"\0\0\0\2\x91\x07", b"\0\0\0\5\x91\xa4text", b"\0\0\0\5\xdd\xff\xff\xff\xff",
        b"\0\0\0\2\xa1\xff", b"\0\1\0\0" + b"\x91" * 65_536,
    ],
    ids=lambda said: said[:12].hex(),
)  # fmt: skip
def test_what_does_not_speak_the_protocol_is_said_not_to(scripted: "Scripted", said: bytes, codec: Codec) -> None:
    def garbage(line: "Line") -> None:
        line.request()
        line.socket.sendall(said)
        line.request()

    server = scripted(garbage, serve)
    db = kv.connect(server.address, timeout=LONG_S, codec=codec)
    with pytest.raises(kv.ProtocolError) as failed:
        db.get("a")
    assert failed.value.code == "bad_reply"
    assert not failed.value.retryable
    assert db.get("a") == b"right"


def test_a_reply_for_what_was_not_asked_ends_the_connection(scripted: "Scripted") -> None:
    """Two replies to one request: with the second one left over, every later answer would be shifted."""

    def twice(line: "Line") -> None:
        line.request()
        line.reply(b"1", b"2")
        line.request()

    server = scripted(twice, serve)
    db = kv.connect(server.address, timeout=LONG_S)
    with pytest.raises(kv.ProtocolError):
        db.get("a")
    assert db.get("a") == b"right"
    assert server.connections == 2


def test_arbitrary_answers_raise_only_kvd_errors(scripted: "Scripted", codec: Codec) -> None:
    answer = [b""]

    def echo(line: "Line") -> None:
        while line.request() is not None:
            line.payload(answer[0])

    db = kv.connect(scripted(echo).address, timeout=LONG_S, codec=codec)
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
        answer[0] = payload
        try:
            call()
        except KvdError:
            outcomes[False] += 1
        else:
            outcomes[True] += 1

    run()
    assert min(outcomes.values()) >= 1, outcomes


# ---------------------------------------------------------------------- descriptors


def test_no_failure_leaves_a_descriptor_open(scripted: "Scripted") -> None:
    def descriptors() -> int:
        return sum(1 for link in os.scandir("/proc/self/fd") if "socket" in _target(link.path))

    server = scripted(hang_up)
    before = None
    for number in range(40):
        with pytest.raises(kv.ConnectionLost):
            kv.connect(server.address, timeout=LONG_S).get("a")
        with pytest.raises(kv.Unavailable):
            kv.connect("/nonexistent").get("a")
        if number == 10:
            before = descriptors()
    assert before is not None
    assert descriptors() <= before + 5, "a script may still be closing its end"


def _target(path: str) -> str:
    try:
        return os.readlink(path)
    except FileNotFoundError:
        return ""
