"""Requests that write: commit, increment, touch, ttl, and every combination of the options for expiry."""

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from kvd.protocol.limits import Limits
from kvd.requests.limits import MAX_TTL_MS

if TYPE_CHECKING:
    from tests.harness.in_memory import InMemoryClient

Connect = Callable[..., "InMemoryClient"]
HIGHEST, LOWEST = 2**63 - 1, -(2**63)


def value_of(client: "InMemoryClient", key: str) -> bytes | None:
    value: bytes | None = client.ask("get", key)
    return value


# ---------------------------------------------------------------------- commit


def test_commit_writes_and_deletes_in_one_version(client: "InMemoryClient") -> None:
    client.ask("set", {"a": b"1", "b": b"2"})
    version = client.ask("commit", {"a": b"new", "b": None, "c": b"", "missing": None})
    assert client.ask("fetch", ["a", "b", "c"]) == [
        [b"new", version, None, None, None], [None, 0, None, None, None], [b"", version, None, None, None],
    ]  # fmt: skip
    assert client.ask("log", version, 1)[0][3] == ["a", "c", "b"]


def test_commit_without_writes_checks_its_reads_and_answers_the_current_version(client: "InMemoryClient") -> None:
    version = client.ask("set", {"a": b"1"})
    assert client.ask("commit", {}) == version
    assert client.ask("commit", {"missing": None}) == version
    assert client.ask("commit", {}, {"a": version, "b": 0}, [["a", "b"]], version) == version
    assert client.code("commit", {}, {"a": version + 1}) == "conflict"
    assert client.metric("version") == version


def test_commit_succeeds_if_its_reads_are_unchanged(client: "InMemoryClient") -> None:
    version = client.ask("set", {"a": b"1"})
    assert client.ask("commit", {"b": b"2"}, {"a": version, "absent": 0}) == version + 1
    assert client.ask("commit", {"b": b"3"}, None, None, None, None) == version + 2, "a blind write"
    client.ask("delete", ["a"])
    assert client.ask("commit", {"b": b"4"}, {"a": 0}) == version + 4


def test_a_conflict_names_the_changed_keys_and_the_authors_of_the_changes(client: "InMemoryClient") -> None:
    seen = client.ask("set", {"a": b"1", "gone": b""})
    changed = client.another(uid=7).ask("set", {"a": b"2"})
    deleted, _ = client.another(uid=8).ask("delete", ["gone"])
    appeared = client.another(uid=None).database.set({"new": b""}, client.another(uid=9).peer.author)
    reply = client.ask("commit", {"x": b""}, {"a": seen, "gone": seen, "new": 0, "never": seen})
    times = {version: time for version, time, *_ in client.ask("log", 0, 9)}
    assert reply["error"] == "conflict"
    assert reply["conflicts"] == [
        ["a", seen, changed, times[changed], [7, None, "another"]],
        ["gone", seen, 0, times[deleted], [8, None, "another"]],
        ["new", 0, appeared, times[appeared], [9, None, "another"]],
        ["never", seen, 0, None, None],
    ]
    assert "'a' is at version 2 but was at version 1 when it was read" in reply["message"]
    assert "uid 7" in reply["message"]
    assert value_of(client, "x") is None, "nothing was written"


@pytest.mark.parametrize(
    ("change", "conflicts"),
    [
        (["set", {"b": b"new"}], True),
        (["set", {"bb": b"appeared"}], True),
        (["delete", ["b"]], True),
        (["set", {"a": b"before it"}], False),
        (["set", {"c": b"its end is not in it"}], False),
    ],
)
def test_a_range_conflicts_with_changes_in_it(client: "InMemoryClient", change: list[Any], conflicts: bool) -> None:
    client.ask("set", dict.fromkeys("abc", b""))
    snapshot = client.ask("begin")
    client.ask(*change)
    assert client.code("commit", {"x": b""}, None, [["b", "c"]], snapshot) == ("conflict" if conflicts else "")
    assert client.code("commit", {"x": b""}, None, [["d", None]], snapshot) == ("conflict" if not conflicts else "")


def test_ranges_need_a_readable_snapshot(connect: Connect) -> None:
    client = connect(max_commits=0)
    client.batch(*[["set", {"a": b""}]] * 3)
    client.batch(*[["set", {"a": b""}]] * 3)
    assert client.code("commit", {}, None, [["", None]]) == "bad_request"
    assert client.code("commit", {}, None, [["", None]], 0) == "snapshot_gone"
    assert client.code("commit", {}, None, [["", None]], 99) == "bad_request"
    assert client.code("commit", {}, None, [["", None]], 6) == ""
    assert client.code("commit", {}, None, [], None) == ""


def test_a_conflict_lists_at_most_a_hundred(client: "InMemoryClient") -> None:
    reply = client.ask("commit", {}, {f"{number:04}": 1 for number in range(1_000)})
    assert len(reply["conflicts"]) == 100
    reply = client.ask("commit", {}, {f"{number:04}" + "x" * 2_000: 1 for number in range(30)})
    assert len(reply["conflicts"]) == 3


COUNTED: dict[str, Callable[[int], list[Any]]] = {
    "the writes of a commit": lambda count: ["commit", {str(number): b"" for number in range(count)}],
    "the deletions of a commit": lambda count: ["commit", {str(number): None for number in range(count)}],
    "the reads of a commit": lambda count: ["commit", {}, {str(number): 0 for number in range(count)}],
    "the ranges of a commit": lambda count: ["commit", {}, None, [["a", "b"]] * count, 0],
    "fetch": lambda count: ["fetch", ["a"] * count],
    "touch": lambda count: ["touch", ["a"] * count, 5],
    "ttl": lambda count: ["ttl", ["a"] * count],
}


@pytest.mark.parametrize("what", COUNTED)
def test_counts_are_limited(connect: Connect, what: str) -> None:
    for count, code in ((2, ""), (3, ""), (4, "too_large")):
        assert connect(Limits(max_keys_per_request=3)).code(*COUNTED[what](count)) == code


NAMED: dict[str, Callable[[str], list[Any]]] = {
    "a write of a commit": lambda key: ["commit", {"other": b"", key: b""}],
    "a deletion of a commit": lambda key: ["commit", {"other": b"", key: None}],
    "fetch": lambda key: ["fetch", ["other", key]],
    "increment": lambda key: ["increment", key, 1],
    "touch": lambda key: ["touch", ["other", key], 5],
    "ttl": lambda key: ["ttl", ["other", key]],
    "history": lambda key: ["history", key, 1],
}


@pytest.mark.parametrize("what", NAMED)
def test_keys_are_limited(connect: Connect, what: str) -> None:
    for key, code in (
        ("", "bad_request"), ("x" * 23, ""), ("x" * 24, ""), ("é" * 12, ""), ("🎂" * 6, ""),
        ("x" * 25, "too_large"), ("é" * 12 + "x", "too_large"), ("🎂" * 6 + "x", "too_large"),
    ):  # fmt: skip
        client = connect(Limits(max_key_bytes=24))
        assert client.code(*NAMED[what](key)) == code, key
        assert client.metric("keys_stored") == (code == "" and what in ("a write of a commit", "increment")) + (
            code == "" and "commit" in what
        )


def test_the_values_of_a_commit_are_limited(connect: Connect) -> None:
    for size, code in ((99, ""), (100, ""), (101, "too_large")):
        client = connect(Limits(max_value_bytes=100))
        assert client.code("commit", {"a": b"x" * size, "b": None}) == code
        assert client.metric("keys_stored") == (code == "")


# ---------------------------------------------------------------------- increment


def test_increment_adds_to_a_decimal_number(client: "InMemoryClient") -> None:
    assert client.ask("increment", "n", 5) == [5, 1]
    assert client.ask("increment", "n", -7) == [-2, 2]
    assert client.ask("increment", "n", 0) == [-2, 3]
    assert value_of(client, "n") == b"-2"
    client.ask("set", {"n": b"41"})
    assert client.batch(["increment", "n", 1], ["increment", "n", 1]) == [[42, 5], [43, 6]]


@pytest.mark.parametrize("by", [HIGHEST, LOWEST])
def test_increment_is_limited_to_64_bits(client: "InMemoryClient", by: int) -> None:
    assert client.ask("increment", "n", by) == [by, 1]
    reply = client.ask("increment", "n", 1 if by > 0 else -1)
    assert reply["error"] == "not_a_number"
    assert (value_of(client, "n"), client.metric("version")) == (b"%d" % by, 1)
    assert client.code("increment", "n", 2**63) == "bad_request"


@pytest.mark.parametrize(
    "value", [b"", b"x", b"1.0", b" 1", b"1 ", b"+", b"9" * 30, b"\xff", "\u0661".encode(), b"1_0"]
)
def test_a_value_that_is_no_number_is_not_incremented(client: "InMemoryClient", value: bytes) -> None:
    client.ask("set", {"n": value})
    assert client.code("increment", "n", 1) == "not_a_number"
    assert (value_of(client, "n"), client.metric("version")) == (value, 1)


# ---------------------------------------------------------------------- touch and ttl


def test_ttl_answers_the_milliseconds_left_rounded_up(client: "InMemoryClient") -> None:
    client.batch(["set", {"a": b""}, {"ttl": 5}], ["set", {"b": b""}])
    assert client.ask("ttl", ["a", "b", "c", "a"]) == [5, -1, None, 5]
    client.timer.now += 1
    assert client.ask("ttl", ["a"]) == [5]
    client.timer.now += 4_998
    assert client.ask("ttl", ["a"]) == [1]
    client.timer.now += 1
    assert client.ask("ttl", ["a"]) == [None]


def test_touch_changes_deadlines_and_leaves_values(client: "InMemoryClient") -> None:
    client.batch(["set", {"a": b"1"}], ["set", {"b": b"2"}, {"ttl": 5}])
    assert client.ask("touch", ["a", "no", "b", "a"], 9) == [True, False, True, True]
    assert client.ask("ttl", ["a", "b"]) == [9, 9]
    assert client.ask("get_many", ["a", "b"]) == [b"1", b"2"]
    assert client.metric("version") == 3, "in one commit"
    assert client.ask("touch", ["b"], None) == [True]
    assert client.ask("ttl", ["a", "b"]) == [9, -1]
    version = client.metric("version")
    assert client.ask("touch", ["no"], 1) == [False]
    assert client.metric("version") == version, "nothing to commit"


def test_an_expired_key_is_absent_and_its_expiry_is_a_commit(client: "InMemoryClient") -> None:
    version = client.ask("set", {"a": b"1", "b": b"2"}, {"ttl": 5})
    client.timer.now += 5_000
    assert client.batch(["get", "a"], ["commit", {}, {"a": version}], ["scan", "", None, 9])[0] is None
    assert client.code("commit", {}, {"a": version}) == "conflict"
    assert client.ask("get_many", ["a", "b"], version) == [b"1", b"2"], "the old version is still readable"
    assert client.ask("log", version + 1, 9)[0][2:] == [[None, None, "expired"], ["a", "b"]]


TIMED: dict[str, Callable[[Any], list[Any]]] = {
    "set": lambda ttl: ["set", {"a": b""}, {"ttl": ttl}],
    "commit": lambda ttl: ["commit", {"a": b""}, None, None, None, {"ttl": ttl}],
    "increment": lambda ttl: ["increment", "a", 1, {"ttl": ttl}],
    "touch": lambda ttl: ["touch", ["a"], ttl],
}


@pytest.mark.parametrize("write", TIMED)
def test_a_ttl_is_from_a_millisecond_to_a_hundred_years(connect: Connect, write: str) -> None:
    assert MAX_TTL_MS == 3_155_760_000_000
    for ttl, code in (
        (-1, "bad_request"), (0, "bad_request"), (1, ""), (2, ""), (MAX_TTL_MS, ""),
        (MAX_TTL_MS + 1, "bad_request"), (2**64 - 1, "bad_request"),
    ):  # fmt: skip
        client = connect()
        assert client.code(*TIMED[write](ttl)) == code
        if write != "touch":
            assert client.ask("ttl", ["a"]) == [None if code else ttl]


# ---------------------------------------------------------------------- write options

OLD_TTL, NEW_TTL = 1_000, 50
WRITES: dict[str, Callable[[Any], list[Any]]] = {
    "set": lambda options: ["set", {"key": b"1"}, options],
    "increment": lambda options: ["increment", "key", 1, options],
    "commit": lambda options: ["commit", {"key": b"1"}, None, None, None, options],
    "set with another key": lambda options: ["set", {"other": b"", "key": b"1"}, options],
}
BEFORE = ("absent", "endless", "timed", "another's", "own")
COMBINATIONS = list(itertools.product((None, NEW_TTL), (False, True), (False, True)))


def prepare(client: "InMemoryClient", other: "InMemoryClient", before: str) -> None:
    """Bring the key into its state before the write."""
    if before == "endless":
        client.ask("set", {"key": b"0"})
    elif before == "timed":
        client.ask("set", {"key": b"0"}, {"ttl": OLD_TTL})
    elif before in ("another's", "own"):
        owner = other if before == "another's" else client
        owner.ask("set", {"key": b"0"}, {"ephemeral": True, "ttl": OLD_TTL})


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize(("ttl", "keep_ttl", "ephemeral"), COMBINATIONS)
def test_the_write_options_decide_the_expiry_of_a_key(
    client: "InMemoryClient", write: str, before: str, ttl: int | None, keep_ttl: bool, ephemeral: bool
) -> None:
    other = client.another()
    prepare(client, other, before)
    options = {"keep_ttl": keep_ttl, "ephemeral": ephemeral, **({} if ttl is None else {"ttl": ttl})}
    assert client.code(*WRITES[write](options)) == ""
    keeps = before != "absent" and (keep_ttl or (write == "increment" and ttl is None))
    had = None if before in ("absent", "endless") else OLD_TTL
    assert client.ask("ttl", ["key"]) == [(had if keeps else ttl) or -1]
    # With ephemeral the writer owns the key, even if the key keeps its deadline.
    owner = "own" if ephemeral else before if keeps else ""
    other.disconnect()
    assert (value_of(client, "key") is None) == (owner == "another's")
    client.disconnect()
    assert (value_of(client.another(), "key") is None) == (owner in ("another's", "own"))


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize(("ttl", "expected"), [(None, 7), (5, 7)])
def test_a_key_may_have_a_ttl_of_its_own(client: "InMemoryClient", write: str, ttl: int | None, expected: int) -> None:
    options = {"ttls": {"key": 7}, **({} if ttl is None else {"ttl": ttl})}
    prepare(client, client, "endless")
    assert client.code(*WRITES[write](options)) == ""
    assert client.ask("ttl", ["key"]) == [expected]


def test_ttls_are_for_some_keys_and_ttl_for_the_others(client: "InMemoryClient") -> None:
    client.ask("commit", {"a": b"", "b": b"", "c": b""}, {}, [], None, {"ttl": 100, "ttls": {"a": 200, "b": 300}})
    assert client.ask("ttl", ["a", "b", "c"]) == [200, 300, 100]
    client.ask("set", {"a": b"", "new": b""}, {"keep_ttl": True, "ttls": {"a": 5, "new": 6}})
    assert client.ask("ttl", ["a", "new"]) == [200, 6], "an existing key keeps its own TTL"


@pytest.mark.parametrize("ttls", [{"unwritten": 5}, {"key": 0}, {"key": -1}, {"key": 2**62}])
@pytest.mark.parametrize("write", WRITES)
def test_invalid_ttls_are_an_error(client: "InMemoryClient", write: str, ttls: dict[str, int]) -> None:
    assert client.code(*WRITES[write]({"ttls": ttls})) == "bad_request"
    assert client.metric("version") == 0


@pytest.mark.parametrize("options", [None, {}, {"sync": True}, {"sync": False}, {"sync": None}])
@pytest.mark.parametrize("write", ["set", "commit"])
def test_a_write_without_expiry_options_makes_a_key_without_expiry(
    client: "InMemoryClient",
    write: str,
    options: Any,  # noqa: ANN401
) -> None:
    prepare(client, client, "own")
    client.ask(*WRITES[write](options))
    assert client.ask("ttl", ["key"]) == [-1]
    client.disconnect()
    assert value_of(client.another(), "key") == b"1"


@pytest.mark.parametrize(
    "options",
    [{"unknown": 1}, {"ttl": "5"}, {"keep_ttl": 1}, {"keep_ttl": None}, {"id": b"short"}, {"id": b"x" * 17}, [], True],
)
def test_write_options_of_a_wrong_form_are_an_error_of_their_frame(client: "InMemoryClient", options: object) -> None:
    from msgspec.msgpack import encode

    reply = client.frame(encode([["set", {"a": b""}], ["set", {"b": b""}, options]]))
    assert (reply["error"], client.metric("version")) == ("bad_request", 0)


@pytest.mark.parametrize("write", ["set", "commit", "increment"])
@pytest.mark.parametrize("limit", [0, 1, 3])
def test_the_ephemeral_keys_of_a_connection_are_limited(connect: Connect, limit: int, write: str) -> None:
    client = connect(Limits(max_ephemeral_keys_per_connection=limit))
    options = {"ephemeral": True}
    for number in range(limit):
        assert client.code("set", {f"{number}": b""}, options) == ""
    reply = client.ask(*WRITES[write](options))
    assert (reply["error"], str(limit) in reply["message"]) == ("too_large", True)
    assert value_of(client, "key") is None
    assert client.another().code(*WRITES[write](options)) == ("too_large" if limit == 0 else "")
    if limit:
        client.ask("delete", ["0"])
        assert client.code("set", {"again": b""}, options) == ""


def test_ephemeral_keys_are_deleted_in_one_commit_of_their_owner(client: "InMemoryClient") -> None:
    other = client.another(uid=7)
    other.batch(["set", {"a": b"", "b": b""}, {"ephemeral": True}], ["set", {"c": b""}, {"ephemeral": True}])
    client.ask("set", {"c": b"mine now"})
    version = client.metric("version")
    other.disconnect()
    assert client.ask("get_many", ["a", "b", "c"]) == [None, None, b"mine now"]
    ((_, _, author, keys),) = client.ask("log", version + 1, 9)
    assert (author, sorted(keys)) == ([7, None, "another"], ["a", "b"])
    other.disconnect()
    assert client.metric("version") == version + 1
