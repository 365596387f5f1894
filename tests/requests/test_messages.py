"""Requests on the wire: each valid form, each kind of mistake, and arbitrary bytes."""

import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kvd.protocol import messages
from kvd.protocol.messages import DECODE_ERRORS, decode_batch, decode_request, split_batch
from tests.harness.scale import SCALE

encode = msgspec.msgpack.encode
many = settings(max_examples=max(50, int(1_000 * SCALE)), deadline=None, suppress_health_check=[HealthCheck.too_slow])

ID = bytes(range(16))
OPTIONS = {"ttl": 1, "keep_ttl": True, "ephemeral": True, "id": ID, "since": 7, "sync": False, "ttls": {"a": 5}}

FORMS: list[tuple[list[Any], messages.AnyRequest]] = [
    (["hello", 1, "me"], messages.Hello(1, "me")),
    (["hello", 1, "me", None], messages.Hello(1, "me")),
    (["hello", 1, "me", "token"], messages.Hello(1, "me", "token")),
    (["attach"], messages.Attach()),
    (["ping"], messages.Ping()),
    (["get", "🎂"], messages.Get("🎂")),
    (["get", ""], messages.Get("")),  # an error of the request, not of the frame
    (["get_many", []], messages.GetMany([])),
    (["get_many", ["a", "a"], 7], messages.GetMany(["a", "a"], 7)),
    (["get_many", ["a"], None], messages.GetMany(["a"])),
    (["get_many", ["a"], 2**64 - 1], messages.GetMany(["a"], 2**64 - 1)),
    (["fetch", ["a", "a"]], messages.Fetch(["a", "a"])),
    (["fetch", [], -1], messages.Fetch([], messages.BEGUN)),
    (["set", {}], messages.Set({})),
    (["set", {"a": b"\0\xff", "b": b""}], messages.Set({"a": b"\0\xff", "b": b""})),
    (["set", {"a": b""}, None], messages.Set({"a": b""})),
    (["set", {"a": b""}, {}], messages.Set({"a": b""}, messages.WriteOptions())),
    (
        ["set", {"a": b""}, OPTIONS],
        messages.Set({"a": b""}, messages.WriteOptions(1, True, True, ID, 7, False, {"a": 5})),
    ),
    (["set", {"a": b""}, {"ttl": None}], messages.Set({"a": b""}, messages.WriteOptions())),
    (["delete", ["a"]], messages.Delete(["a"])),
    (["delete", ["a"], True], messages.Delete(["a"], True)),
    (["delete", ["a"], False, {"id": ID}], messages.Delete(["a"], False, messages.WriteOptions(id=ID))),
    (["increment", "a", -1], messages.Increment("a", -1)),
    (["increment", "a", 2**63, {"ttl": 5}], messages.Increment("a", 2**63, messages.WriteOptions(5))),
    (["commit", {}], messages.Commit({})),
    (["commit", {"a": b"", "b": None}, {"c": 0}], messages.Commit({"a": b"", "b": None}, {"c": 0})),
    (["commit", {}, None, [["a", "b"], ["", None]], 7], messages.Commit({}, None, [("a", "b"), ("", None)], 7)),
    (["commit", {}, {}, [], None, {"since": 1}], messages.Commit({}, {}, [], None, messages.WriteOptions(since=1))),
    (["begin"], messages.Begin()),
    (["end", 7], messages.End(7)),
    (["touch", ["a"], None], messages.Touch(["a"], None)),
    (["touch", ["a"], 5, {"id": ID}], messages.Touch(["a"], 5, messages.WriteOptions(id=ID))),
    (["ttl", ["a"]], messages.Ttl(["a"])),
    (["history", "a", 3], messages.History("a", 3)),
    (["history", "a", 3, 9], messages.History("a", 3, 9)),
    (["log", None, 3], messages.Log(None, 3)),
    (["log", 7, 3], messages.Log(7, 3)),
    (["version_at", 10**15], messages.VersionAt(10**15)),
    (["watch", ""], messages.Watch("")),
    (["watch", "a", 7], messages.Watch("a", 7)),
    (["scan", "", None, 10], messages.Scan("", None, 10)),
    (["scan", "a", "b", -1, 3, True], messages.Scan("a", "b", -1, 3, True)),
    (["metrics"], messages.Metrics()),
    (["exposition"], messages.Exposition()),
    (["status"], messages.Status()),
    (["reload"], messages.Reload()),
    (["access", "a"], messages.Access("a")),
    (["access", "a", 1000, [4, 27]], messages.Access("a", 1000, [4, 27])),
    (["access", "a", None, [], "web"], messages.Access("a", certificate="web")),
    (["access", "a", None, [], None, "ci"], messages.Access("a", token="ci")),  # noqa: S106 - a name
    (["slowlog", 20], messages.SlowLog(20)),
    (["slowlog", 20, True], messages.SlowLog(20, True)),
    (["largest", "a", 10], messages.Largest("a", 10)),
    (["hottest", "reads", 10], messages.Hottest("reads", 10)),
    (["hottest", "writes", 10], messages.Hottest("writes", 10)),
    (["checkpoint"], messages.Checkpoint()),
    (["backup"], messages.Backup()),
    (["shutdown"], messages.Shutdown()),
]


def fields(request: messages.AnyRequest) -> tuple[object, ...]:
    values = msgspec.structs.astuple(request)
    return type(request), [
        msgspec.to_builtins(value) if isinstance(value, messages.WriteOptions) else value for value in values
    ]


@pytest.mark.parametrize(("wire", "request_"), FORMS, ids=lambda value: str(value)[:40])
def test_every_form_of_a_request_is_decoded(wire: list[Any], request_: messages.AnyRequest) -> None:
    assert fields(decode_request(encode(wire))) == fields(request_)
    assert [fields(each) for each in decode_batch(encode([wire, wire]))] == [fields(request_)] * 2
    assert [fields(decode_request(raw)) for raw in split_batch(encode([wire]))] == [fields(request_)]


def test_every_request_is_among_the_forms() -> None:
    assert {type(request) for _, request in FORMS} == set(messages.AnyRequest.__args__)


@pytest.mark.parametrize(
    "wire",
    [
        ["no such request"], ["GET", "a"], [], [1], [None], [["get", "a"]], {"get": "a"}, "ping", None, 7, b"ping",
        ["ping", 1], ["metrics", None], ["get"], ["get", "a", "b"], ["get", b"a"], ["get", 1], ["get", None],
        ["get", ["a"]], ["get_many", "a"], ["get_many", [b"a"]], ["get_many", {"a": 1}], ["get_many", ["a"], 1.5],
        ["get_many", ["a"], "1"], ["get_many", ["a"], True], ["get_many", ["a"], 1, 2], ["set", {"a": "text"}],
        ["set", {"a": None}], ["set", {1: b""}], ["set", {b"a": b""}], ["set", [["a", b""]]], ["set"],
        ["set", {"a": b""}, {"ttl": 1.5}], ["set", {"a": b""}, {"lives": 1}], ["set", {"a": b""}, {"keep_ttl": None}],
        ["set", {"a": b""}, {"ephemeral": 1}], ["set", {"a": b""}, {"id": b"x" * 15}], ["set", {"a": b""}, [1]],
        ["set", {"a": b""}, {"id": "x" * 16}], ["set", {"a": b""}, {"id": b"x" * 17}], ["set", {"a": b""}, {}, 1],
        ["increment", "a"], ["increment", "a", "1"], ["increment", "a", None], ["commit"],
        ["commit", {"a": "text"}], ["commit", {}, {"a": None}], ["commit", {}, {"a": b""}], ["commit", {}, ["a"]],
        ["commit", {}, {}, [["a"]]], ["commit", {}, {}, [[None, "b"]]], ["commit", {}, {}, [["a", "b", "c"]]],
        ["commit", {}, {}, {"a": "b"}], ["commit", {}, {}, [], "7"], ["commit", {}, {}, [], 7, {}, 1], ["begin", 1],
        ["end"], ["end", None], ["touch", ["a"]], ["touch", ["a"], "1"], ["touch", "a", 1], ["ttl"], ["ttl", "a"],
        ["ttl", ["a"], 1], ["history", "a"], ["history", None, 1], ["history", "a", None], ["log"], ["log", None],
        ["log", "7", 1], ["version_at"], ["version_at", None], ["version_at", "now"], ["watch"], ["watch", None],
        ["watch", "a", "7"], ["fetch"], ["fetch", "a"], ["fetch", ["a"], True], ["checkpoint", 1],
        ["set", {"a": [b""]}], ["delete", ["a"], None], ["delete", ["a"], 1],
        ["delete", "a"], ["delete", [None]], ["scan", "a", None], ["scan", None, None, 1], ["scan", "a", 1, 1],
        ["scan", "a", None, "1"], ["scan", "a", None, 1, None, None], ["scan", "a", None, 1, None, True, 1],
        ["hello"], ["hello", "1", "me"], ["hello", 1], ["hello", 1, None], ["hello", 1, "me", 5],
        ["slowlog"], ["slowlog", None], ["slowlog", 1, None], ["largest", "a"], ["largest", None, 1],
        ["hottest", "size", 1], ["hottest", None, 1], ["hottest", "reads"],
        ["shutdown", "now"], ["get", msgspec.msgpack.Ext(1, b"a")], ["get_many", [msgspec.msgpack.Ext(-1, b"1234")]],
    ],
    ids=lambda wire: str(wire)[:40],
)  # fmt: skip
def test_a_request_of_a_wrong_form_is_an_error_of_its_frame(wire: object) -> None:
    with pytest.raises(DECODE_ERRORS):
        decode_request(encode(wire))
    with pytest.raises(DECODE_ERRORS):
        decode_batch(encode([["ping"], wire]))


@pytest.mark.parametrize(
    "payload",
    [b"", b"\xc0", b"\xc1", b"\x90", b"\x80", encode("x"), encode([["ping"]]) + b"\0", encode([["ping"]])[:-1]],
    ids=repr,
)
def test_a_frame_is_one_array_of_at_least_one_request(payload: bytes) -> None:
    for decode in (decode_batch, split_batch):
        with pytest.raises(DECODE_ERRORS):
            decode(payload)


def test_the_number_of_requests_in_a_frame_is_limited() -> None:
    full = encode([["ping"]] * messages.MAX_REQUESTS)
    assert len(decode_batch(full)) == len(split_batch(full)) == messages.MAX_REQUESTS
    over = encode([["ping"]] * (messages.MAX_REQUESTS + 1))
    for decode in (decode_batch, split_batch):
        with pytest.raises(DECODE_ERRORS, match="length"):
            decode(over)


def test_the_number_of_keys_in_a_request_is_limited() -> None:
    keys = [str(number) for number in range(messages.MAX_KEYS + 1)]
    assert len(decode_request(encode(["get_many", keys[1:]])).keys) == messages.MAX_KEYS  # type: ignore[union-attr]
    for wire in (
        ["get_many", keys], ["fetch", keys], ["delete", keys], ["touch", keys, 1], ["ttl", keys],
        ["set", dict.fromkeys(keys, b"")], ["commit", dict.fromkeys(keys)], ["commit", {}, dict.fromkeys(keys, 1)],
        ["commit", {}, {}, [[key, None] for key in keys], 1],
    ):  # fmt: skip
        with pytest.raises(DECODE_ERRORS, match="length"):
            decode_request(encode(wire))


def array(length: int) -> bytes:
    return b"\xdd" + length.to_bytes(4, "big")


DEEP = [
    opener * 100_000 + closer
    for opener, closer in (
        (b"\x91", b"\x90"),
        (b"\x81\xa1a", b"\x80"),
        (b"\xdd\0\0\0\1", b"\xc0"),
        (b"\x91\x81\xc0", b"\xc0"),
    )
]
GET, GET_MANY, SET = b"\x91\x92\xa3get", b"\x91\x92\xa8get_many", b"\x91\x92\xa3set"
COMMIT = b"\x91\x94\xa6commit"
FALSE_LENGTHS = [
    array(2**32 - 1), array(65_536), b"\xdc\xff\xff", b"\x91" + array(2**32 - 1), GET_MANY + array(2**32 - 1),
    GET_MANY + array(262_144), SET + b"\xdf\xff\xff\xff\xff", SET + b"\xdf\x00\x04\x00\x00",
    SET + b"\x81\xa1a\xc6\xff\xff\xff\xff", GET + b"\xdb\xff\xff\xff\xff", GET + b"\xc9\xff\xff\xff\xff\x01",
    b"\x91\x92\xdb\xff\xff\xff\xff", COMMIT + b"\xdf\xff\xff\xff\xff", COMMIT + b"\x80\xdf\xff\xff\xff\xff",
    COMMIT + b"\x80\x80" + array(2**32 - 1), COMMIT + b"\x80\x80" + array(262_144),
]  # fmt: skip


@pytest.mark.parametrize("deep", DEEP, ids=["arrays", "maps", "wide arrays", "both"])
@pytest.mark.parametrize("around", [b"", b"\x91", b"\x92\x91\xa4ping", GET, GET_MANY, SET + b"\x81\xa1a"], ids=repr)
def test_deep_nesting_is_a_decode_error(around: bytes, deep: bytes) -> None:
    for decode in (decode_batch, split_batch, decode_request):
        with pytest.raises(DECODE_ERRORS):
            decode(around + deep)


@pytest.mark.parametrize("payload", FALSE_LENGTHS, ids=lambda payload: payload.hex())
def test_a_false_length_is_a_decode_error_and_allocates_little(payload: bytes) -> None:
    for decode in (decode_batch, split_batch, decode_request):
        tracemalloc.start()
        try:
            with pytest.raises(DECODE_ERRORS):
                decode(payload)
            assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize(
    "text", [b"\xed\xa0\x80", b"\xff", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"], ids=bytes.hex
)
def test_a_key_that_is_not_utf8_is_a_decode_error(text: bytes) -> None:
    key = bytes([0xA0 + len(text)]) + text
    for payload in (GET + key, GET_MANY + b"\x91" + key, SET + b"\x81" + key + b"\xc4\0"):
        with pytest.raises(DECODE_ERRORS):
            decode_batch(payload)


def count_requests(payload: bytes) -> int:
    """Check that both decoders agree on these bytes. Return the number of requests, or 0 if the bytes are no batch.

    Any error that is not in DECODE_ERRORS escapes and fails the test.
    """
    try:
        whole = decode_batch(payload)
    except DECODE_ERRORS:
        whole = None
    try:
        one_by_one = [decode_request(raw) for raw in split_batch(payload)]
    except DECODE_ERRORS:
        one_by_one = None
    assert (whole is None) == (one_by_one is None)
    assert [fields(request) for request in whole or []] == [fields(request) for request in one_by_one or []]
    return len(whole or [])


@many
@given(st.binary(max_size=200))
@example(b"\x91" * 70_000)
def test_arbitrary_bytes_are_a_batch_or_a_decode_error(payload: bytes) -> None:
    count_requests(payload)


wires = st.lists(st.sampled_from([encode(wire) for wire, _ in FORMS]), min_size=1, max_size=4).map(
    lambda wires: bytes([0x90 + len(wires)]) + b"".join(wires)
)
# Bytes with a meaning in MessagePack get further into the decoder.
HEADS = [
    *range(0x8F, 0xA4),
    0xC0,
    0xC1,
    0xC2,
    0xC3,
    0xC4,
    0xC6,
    0xC7,
    0xC9,
    0xCA,
    0xCF,
    0xD3,
    0xD9,
    0xDB,
    0xDD,
    0xDF,
    0xFF,
]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid batch with up to three changes: a byte replaced, inserted or removed, a cut, or a repetition."""
    payload = bytearray(draw(wires))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, max(0, len(payload) - 1)))
        byte = draw(st.sampled_from(HEADS) | st.integers(0, 255))
        change = draw(st.sampled_from(["replace", "insert", "remove", "cut", "double"]))
        if change == "replace":
            payload[at : at + 1] = bytes([byte])
        elif change == "insert":
            payload[at:at] = bytes([byte])
        elif change == "remove":
            del payload[at : at + 1]
        elif change == "cut":
            del payload[at:]
        else:
            payload[at:at] = payload[at : at + 8]
    return bytes(payload)


def test_mutated_batches_are_batches_or_decode_errors() -> None:
    outcomes = {"decoded": 0, "error": 0}

    @many
    @given(mutated())
    def run(payload: bytes) -> None:
        outcomes["decoded" if count_requests(payload) else "error"] += 1

    run()
    print("mutated batches that decode:", outcomes)
    assert min(outcomes.values()) >= 20, "both outcomes must occur"


@many
@given(wires)
def test_a_batch_survives_decoding_and_encoding_unchanged(payload: bytes) -> None:
    assert encode(decode_batch(payload)) == encode([decode_request(raw) for raw in split_batch(payload)])
    assert count_requests(payload) == payload[0] - 0x90
