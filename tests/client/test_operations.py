"""Operations: their requests, and how their replies are read. Both codecs write and read the same."""

from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kv.errors import KvdError, ProtocolError
from kv.results import Author, Commit, HotKeys, Item, SlowFrame, Version, Versioned
from kv.wire import operations
from kv.wire.codecs import full, light
from kv.wire.operations import Operation
from kvd.protocol import position_type
from kvd.protocol.messages import decode_batch
from kvd.protocol.ranges import prefix_end
from tests.harness.scale import SCALE

many = settings(max_examples=max(50, int(300 * SCALE)), deadline=None)

keys = st.text(max_size=40) | st.sampled_from(["", "a" * 31, "a" * 32, "é" * 128, "🎂" * 70, "a" * 70_000])
values = st.binary(max_size=40) | st.sampled_from([b"x" * 255, b"x" * 256, b"x" * 70_000])
versions = (
    st.none()
    | st.integers(0, 2**64 - 1)
    | st.sampled_from([0, 127, 128, 255, 256, 2**16, 2**32, 2**63, 2**64 - 1])
    | st.integers(0, 2**63 - 1).map(position_type("5f0c9e3a7b21d468"))
)
some_keys = st.lists(keys, max_size=5) | st.just(["k"] * 70_000)
every_operation: st.SearchStrategy[Any] = st.one_of(
    st.builds(operations.ping), st.builds(operations.metrics), st.builds(operations.status),
    st.builds(operations.reload), st.builds(operations.shutdown), st.builds(operations.begin),
    st.builds(operations.checkpoint), st.builds(operations.backup),
    st.builds(operations.hello, keys, st.none() | keys),
    st.builds(operations.get, keys),
    st.builds(operations.get_many, some_keys, versions),
    st.builds(operations.fetch, some_keys, versions),
    st.builds(operations.set_many, st.dictionaries(keys, values, max_size=20), st.just({})),
    st.builds(operations.increment, keys, st.integers(-(2**63), 2**63 - 1), st.just({})),
    st.builds(
        operations.commit, st.dictionaries(keys, st.none() | values, max_size=5),
        st.dictionaries(keys, st.integers(0, 2**63), max_size=5),
        st.lists(st.tuples(keys, st.none() | keys), max_size=3), versions, st.just({}),
    ),
    st.builds(operations.touch, some_keys, st.none() | st.floats(0, 1e9)), st.builds(operations.ttl, some_keys),
    st.builds(operations.end, st.integers(0, 2**63), st.none()),
    st.builds(operations.history, keys, st.integers(0, 2**33), versions),
    st.builds(operations.log, versions, st.integers(0, 2**33)),
    st.builds(operations.newest_commits, versions, st.integers(0, 2**33)),
    st.builds(operations.version_at, st.integers(0, 2**60)),
    st.builds(operations.watch, keys, versions),
    st.builds(operations.delete, some_keys, st.booleans(), st.just({})),
    st.builds(operations.scan, keys, st.none() | keys, st.integers(-1, 2**33), versions, st.booleans()),
)  # fmt: skip


@many
@given(every_operation)
def test_both_codecs_write_the_same_bytes_and_the_daemon_understands_them(operation: Operation[Any]) -> None:
    encoded = full().encode([operation.request])
    assert light().encode([operation.request]) == encoded
    (request,) = decode_batch(encoded)
    fields = list(operation.request[1:])
    decoded = list(msgspec.structs.astuple(request))
    assert decoded[: len(fields)] == fields
    assert type(request).__name__.lower() == str(operation.request[0]).replace("_", "")


plain = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary()
)
things = st.recursive(plain, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@many
@given(things)
def test_both_codecs_read_the_same(thing: object) -> None:
    encoded = msgspec.msgpack.encode(thing)
    assert full().decode(encoded) == light().decode(encoded) == thing


@many
@given(st.binary(max_size=60))
@example(b"")
@example(b"\xc1")
@example(b"\x91" * 100_000 + b"\xc0")
@example(b"\x81\xa1a" * 100_000 + b"\xc0")
@example(b"\xdd\xff\xff\xff\xff")
@example(b"\xdf\xff\xff\xff\xff")
@example(b"\xc6\xff\xff\xff\xff")
@example(b"\xa1\xff")
@example(b"\x81\xc0\xc0")
@example(b"\xd7\xff" + b"\xff" * 8)
@example(b"\x91\xc0\xc0")
def test_malformed_bytes_raise_only_the_codecs_errors(payload: bytes) -> None:
    for codec in (full(), light()):
        try:
            codec.decode(payload)
        except codec.errors:
            pass


def test_text_that_is_not_unicode_is_a_value_error_in_both_codecs() -> None:
    for codec in (full(), light()):
        with pytest.raises(ValueError, match="surrogates"):
            codec.encode([operations.get("a\udc80").request])


# ---------------------------------------------------------------------- reading replies

READS: list[tuple[Operation[Any], object, object]] = [
    (operations.get("a"), b"x", b"x"),
    (operations.get("a"), None, None),
    (operations.get_many(["a", "b"], None), [b"x", None], {"a": b"x", "b": None}),
    (operations.get_many([], 3), [], {}),
    (
        operations.fetch(["a", "b"], None),
        [[b"x", 3, None, None, None], [None, 0, None, None, None]],
        {"a": Versioned(b"x", 3), "b": Versioned(None, 0)},
    ),
    (operations.set_many({"a": b""}, {}), 7, 7),
    (operations.increment("a", 1, {}), [-5, 7], -5),
    (operations.commit({}, None, (), None, {}), 7, 7),
    (operations.touch(["a"], 1), [True, False], [True, False]),
    (operations.ttl(["a"]), [1_500, -1, None], [1.5, float("inf"), None]),
    (operations.begin(), 7, 7),
    (operations.end(7, None), False, False),
    (
        operations.history("a", 5, None),
        [[7, None, 9, [0, 1, "x"]], [3, b"x", None, None]],
        [Version(7, None, 9, Author(0, 1, "x")), Version(3, b"x", None, None)],
    ),
    (
        operations.log(None, 5),
        [[7, 9, [None, None, "expired"], ["a"]]],
        [Commit(7, 9, Author(None, None, "expired"), ["a"])],
    ),
    (operations.version_at(9), 7, 7),
    (operations.version(), [1, "0", "store", 7, {}], 7),
    (operations.delete(["a"], False, {}), [7, 1], 1),
    (operations.scan("", None, 5, None, False), [[["a", b"x", 3]], "b"], ([Item("a", b"x", 3)], "b")),
    (operations.scan("", None, 5, None, True), [[], None], ([], None)),
    (operations.ping(), True, True),
    (operations.metrics(), [["keys_stored", 1]], {"keys_stored": 1}),
    (operations.status(), [["version", "1"]], {"version": "1"}),
    (
        operations.slow_log(5, False),
        [[9, 12_000, [0, 1, "x"], [["set", 2], ["get", 1]], ["a"], True]],
        [SlowFrame(9, 12_000, Author(0, 1, "x"), {"set": 2, "get": 1}, ["a"], True)],
    ),
    (operations.largest("", 5), [[["a", 9]], "b"], ({"a": 9}, "b")),
    (operations.largest("b", 5), [[], None], ({}, None)),
    (operations.hottest("reads", 5), [1_500, [["a", 61]]], HotKeys(1.5, {"a": 61})),
    (operations.reload(), ["log level: debug"], ["log level: debug"]),
    (operations.shutdown(), [4711], 4711),
    (operations.checkpoint(), 7, 7),
    (operations.backup(), True, True),
]


@pytest.mark.parametrize(("operation", "reply", "result"), READS, ids=lambda value: str(value)[:30])
def test_a_reply_is_read_as_the_documented_result(operation: Operation[Any], reply: object, result: object) -> None:
    assert operation.read(reply) == result


@pytest.mark.parametrize(
    ("operation", "reply"),
    [
        (operations.get("a"), "text"), (operations.get("a"), 1), (operations.get_many(["a"], None), None),
        (operations.get_many(["a"], None), [b"", b""]), (operations.get_many(["a"], None), ["text"]),
        (operations.set_many({}, {}), "7"), (operations.set_many({}, {}), None), (operations.delete([], True, {}), [1]),
        (operations.delete([], True, {}), 1), (operations.delete([], True, {}), [1, "1"]),
        (operations.scan("", None, 1, None, False), []), (operations.scan("", None, 1, None, False), [1, None]),
        (operations.scan("", None, 1, None, False), [[["a"]], None]), (operations.metrics(), [1]),
        (operations.scan("", None, 1, None, False), [[1], None]), (operations.metrics(), [["a", 1, 2]]),
        (operations.reload(), None), (operations.shutdown(), []), (operations.shutdown(), ["pid"]),
        (operations.checkpoint(), None), (operations.checkpoint(), [7]),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_a_reply_of_another_form_is_refused(operation: Operation[Any], reply: object) -> None:
    with pytest.raises((ProtocolError, ValueError, TypeError, IndexError)):
        operation.read(reply)


@many
@given(st.sampled_from([operation for operation, _, _ in READS]), things)
def test_reading_any_reply_raises_only_errors_that_the_client_expects(operation: Operation[Any], reply: Any) -> None:  # noqa: ANN401
    try:
        operation.read(reply)
    except (KvdError, ValueError, TypeError, IndexError):
        pass


def test_operations_that_write_are_marked_as_writing() -> None:
    writing = {operation.request[0] for operation, _, _ in READS if operation.writing}
    assert writing == {"set", "delete", "increment", "commit", "touch", "shutdown"}
    with_ids = {operation.request[0] for operation, _, _ in READS if operation.options is not None}
    assert with_ids == writing - {"shutdown"}


# ---------------------------------------------------------------------- items and prefixes


def test_items_are_values() -> None:
    item = Item("a", b"x", 1)
    assert item == Item("a", b"x", 1)
    assert len({item, Item("a", b"x", 1), Item("a", b"x", 2)}) == 2
    assert item != Item("a", b"y", 1)
    assert item != ("a", b"x", 1)
    assert repr(item) == "Item(key='a', value=b'x', version=1)"


@pytest.mark.parametrize(
    ("prefix", "end"),
    [
        ("", None), ("a", "b"), ("az", "a{"), ("a\x7f", "a\x80"), ("\ud7ff", "\ue000"), ("\uffff", "\U00010000"),
        ("\U0010ffff", None), ("a\U0010ffff", "b"), ("a\U0010ffff\U0010ffff", "b"),
    ],
    ids=ascii,
)  # fmt: skip
def test_prefix_end_is_the_smallest_string_after_a_prefix(prefix: str, end: str | None) -> None:
    assert prefix_end(prefix) == end


@many
@given(st.text(max_size=4), st.text(max_size=5))
def test_a_key_is_before_the_end_of_a_prefix_exactly_when_it_begins_with_it(prefix: str, key: str) -> None:
    end = prefix_end(prefix)
    assert (prefix <= key and (end is None or key < end)) == key.startswith(prefix)
