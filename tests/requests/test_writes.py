"""Requests that write: commit, increment, touch, ttl, and every combination of what ``how`` says about lives."""

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from kvd.protocol.limits import Limits
from kvd.requests.limits import MAX_TTL_MS

if TYPE_CHECKING:
    from tests.requests.conftest import Ends

MakeEnds = Callable[..., "Ends"]
HIGHEST, LOWEST = 2**63 - 1, -(2**63)


def value_of(ends: "Ends", key: str) -> bytes | None:
    value: bytes | None = ends.ask("get", key)
    return value


# ---------------------------------------------------------------------- commit


def test_commit_writes_and_deletes_in_one_version(ends: "Ends") -> None:
    ends.ask("set", {"a": b"1", "b": b"2"})
    version = ends.ask("commit", {"a": b"new", "b": None, "c": b"", "missing": None})
    assert ends.ask("fetch", ["a", "b", "c"]) == [
        [b"new", version, None, None, None], [None, 0, None, None, None], [b"", version, None, None, None],
    ]  # fmt: skip
    assert ends.ask("log", version, 1)[0][3] == ["a", "c", "b"]


def test_commit_without_writes_answers_the_current_version_once_it_is_checked(ends: "Ends") -> None:
    version = ends.ask("set", {"a": b"1"})
    assert ends.ask("commit", {}) == version
    assert ends.ask("commit", {"missing": None}) == version
    assert ends.ask("commit", {}, {"a": version, "b": 0}, [["a", "b"]], version) == version
    assert ends.code("commit", {}, {"a": version + 1}) == "conflict"
    assert ends.metric("version") == version


def test_commit_happens_if_what_was_read_is_as_it_was(ends: "Ends") -> None:
    version = ends.ask("set", {"a": b"1"})
    assert ends.ask("commit", {"b": b"2"}, {"a": version, "absent": 0}) == version + 1
    assert ends.ask("commit", {"b": b"3"}, None, None, None, None) == version + 2, "a blind write"
    ends.ask("delete", ["a"])
    assert ends.ask("commit", {"b": b"4"}, {"a": 0}) == version + 4


def test_a_conflict_names_what_changed_and_who_changed_it(ends: "Ends") -> None:
    seen = ends.ask("set", {"a": b"1", "gone": b""})
    changed = ends.another(uid=7).ask("set", {"a": b"2"})
    deleted, _ = ends.another(uid=8).ask("delete", ["gone"])
    appeared = ends.another(uid=None).commands.database.set({"new": b""}, ends.another(uid=9).peer.author)
    refused = ends.ask("commit", {"x": b""}, {"a": seen, "gone": seen, "new": 0, "never": seen})
    times = {version: time for version, time, *_ in ends.ask("log", 0, 9)}
    assert refused["error"] == "conflict"
    assert refused["conflicts"] == [
        ["a", seen, changed, times[changed], [7, None, "another"]],
        ["gone", seen, 0, times[deleted], [8, None, "another"]],
        ["new", 0, appeared, times[appeared], [9, None, "another"]],
        ["never", seen, 0, None, None],
    ]
    assert "'a' is at version 2, not at version 1 as it was read" in refused["message"]
    assert "uid 7" in refused["message"]
    assert value_of(ends, "x") is None, "nothing was written"


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
def test_a_range_conflicts_with_what_changed_in_it(ends: "Ends", change: list[Any], conflicts: bool) -> None:
    ends.ask("set", dict.fromkeys("abc", b""))
    snapshot = ends.ask("begin")
    ends.ask(*change)
    assert ends.code("commit", {"x": b""}, None, [["b", "c"]], snapshot) == ("conflict" if conflicts else "")
    assert ends.code("commit", {"x": b""}, None, [["d", None]], snapshot) == ("conflict" if not conflicts else "")


def test_ranges_need_a_snapshot_that_can_be_read(make_ends: MakeEnds) -> None:
    ends = make_ends(max_commits=0)
    ends.batch(*[["set", {"a": b""}]] * 3)
    ends.batch(*[["set", {"a": b""}]] * 3)
    assert ends.code("commit", {}, None, [["", None]]) == "bad_request"
    assert ends.code("commit", {}, None, [["", None]], 0) == "snapshot_gone"
    assert ends.code("commit", {}, None, [["", None]], 99) == "bad_request"
    assert ends.code("commit", {}, None, [["", None]], 6) == ""
    assert ends.code("commit", {}, None, [], None) == ""


def test_a_conflict_lists_at_most_a_hundred(ends: "Ends") -> None:
    refused = ends.ask("commit", {}, {f"{number:04}": 1 for number in range(1_000)})
    assert len(refused["conflicts"]) == 100
    refused = ends.ask("commit", {}, {f"{number:04}" + "x" * 2_000: 1 for number in range(30)})
    assert len(refused["conflicts"]) == 3


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
def test_counts_are_limited(make_ends: MakeEnds, what: str) -> None:
    for count, code in ((2, ""), (3, ""), (4, "too_large")):
        assert make_ends(Limits(max_keys_per_request=3)).code(*COUNTED[what](count)) == code


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
def test_keys_are_limited(make_ends: MakeEnds, what: str) -> None:
    for key, code in (
        ("", "bad_request"), ("x" * 23, ""), ("x" * 24, ""), ("é" * 12, ""), ("🎂" * 6, ""),
        ("x" * 25, "too_large"), ("é" * 12 + "x", "too_large"), ("🎂" * 6 + "x", "too_large"),
    ):  # fmt: skip
        ends = make_ends(Limits(max_key_bytes=24))
        assert ends.code(*NAMED[what](key)) == code, key
        assert ends.metric("keys_stored") == (code == "" and what in ("a write of a commit", "increment")) + (
            code == "" and "commit" in what
        )


def test_the_values_of_a_commit_are_limited(make_ends: MakeEnds) -> None:
    for size, code in ((99, ""), (100, ""), (101, "too_large")):
        ends = make_ends(Limits(max_value_bytes=100))
        assert ends.code("commit", {"a": b"x" * size, "b": None}) == code
        assert ends.metric("keys_stored") == (code == "")


# ---------------------------------------------------------------------- increment


def test_increment_adds_to_a_decimal_number(ends: "Ends") -> None:
    assert ends.ask("increment", "n", 5) == [5, 1]
    assert ends.ask("increment", "n", -7) == [-2, 2]
    assert ends.ask("increment", "n", 0) == [-2, 3]
    assert value_of(ends, "n") == b"-2"
    ends.ask("set", {"n": b"41"})
    assert ends.batch(["increment", "n", 1], ["increment", "n", 1]) == [[42, 5], [43, 6]]


@pytest.mark.parametrize("by", [HIGHEST, LOWEST])
def test_increment_reaches_the_ends_of_64_bits_and_not_beyond(ends: "Ends", by: int) -> None:
    assert ends.ask("increment", "n", by) == [by, 1]
    refused = ends.ask("increment", "n", 1 if by > 0 else -1)
    assert refused["error"] == "not_a_number"
    assert (value_of(ends, "n"), ends.metric("version")) == (b"%d" % by, 1)
    assert ends.code("increment", "n", 2**63) == "bad_request"


@pytest.mark.parametrize(
    "value", [b"", b"x", b"1.0", b" 1", b"1 ", b"+", b"9" * 30, b"\xff", "\u0661".encode(), b"1_0"]
)
def test_what_is_no_number_is_not_incremented(ends: "Ends", value: bytes) -> None:
    ends.ask("set", {"n": value})
    assert ends.code("increment", "n", 1) == "not_a_number"
    assert (value_of(ends, "n"), ends.metric("version")) == (value, 1)


# ---------------------------------------------------------------------- touch and ttl


def test_ttl_tells_the_milliseconds_left_rounded_up(ends: "Ends") -> None:
    ends.batch(["set", {"a": b""}, {"ttl": 5}], ["set", {"b": b""}])
    assert ends.ask("ttl", ["a", "b", "c", "a"]) == [5, -1, None, 5]
    ends.timer.now += 1
    assert ends.ask("ttl", ["a"]) == [5]
    ends.timer.now += 4_998
    assert ends.ask("ttl", ["a"]) == [1]
    ends.timer.now += 1
    assert ends.ask("ttl", ["a"]) == [None]


def test_touch_gives_keys_another_end_and_leaves_their_values(ends: "Ends") -> None:
    ends.batch(["set", {"a": b"1"}], ["set", {"b": b"2"}, {"ttl": 5}])
    assert ends.ask("touch", ["a", "no", "b", "a"], 9) == [True, False, True, True]
    assert ends.ask("ttl", ["a", "b"]) == [9, 9]
    assert ends.ask("get_many", ["a", "b"]) == [b"1", b"2"]
    assert ends.metric("version") == 3, "in one commit"
    assert ends.ask("touch", ["b"], None) == [True]
    assert ends.ask("ttl", ["a", "b"]) == [9, -1]
    version = ends.metric("version")
    assert ends.ask("touch", ["no"], 1) == [False]
    assert ends.metric("version") == version, "nothing to commit"


def test_an_expired_key_is_absent_to_everybody_and_expires_as_a_commit(ends: "Ends") -> None:
    version = ends.ask("set", {"a": b"1", "b": b"2"}, {"ttl": 5})
    ends.timer.now += 5_000
    assert ends.batch(["get", "a"], ["commit", {}, {"a": version}], ["scan", "", None, 9])[0] is None
    assert ends.code("commit", {}, {"a": version}) == "conflict"
    assert ends.ask("get_many", ["a", "b"], version) == [b"1", b"2"], "its past is still there"
    assert ends.ask("log", version + 1, 9)[0][2:] == [[None, None, "expired"], ["a", "b"]]


TIMED: dict[str, Callable[[Any], list[Any]]] = {
    "set": lambda ttl: ["set", {"a": b""}, {"ttl": ttl}],
    "commit": lambda ttl: ["commit", {"a": b""}, None, None, None, {"ttl": ttl}],
    "increment": lambda ttl: ["increment", "a", 1, {"ttl": ttl}],
    "touch": lambda ttl: ["touch", ["a"], ttl],
}


@pytest.mark.parametrize("write", TIMED)
def test_a_ttl_is_from_a_millisecond_to_a_hundred_years(make_ends: MakeEnds, write: str) -> None:
    assert MAX_TTL_MS == 3_155_760_000_000
    for ttl, code in (
        (-1, "bad_request"), (0, "bad_request"), (1, ""), (2, ""), (MAX_TTL_MS, ""),
        (MAX_TTL_MS + 1, "bad_request"), (2**64 - 1, "bad_request"),
    ):  # fmt: skip
        ends = make_ends()
        assert ends.code(*TIMED[write](ttl)) == code
        if write != "touch":
            assert ends.ask("ttl", ["a"]) == [None if code else ttl]


# ---------------------------------------------------------------------- how

OLD_TTL, NEW_TTL = 1_000, 50
WRITES: dict[str, Callable[[Any], list[Any]]] = {
    "set": lambda how: ["set", {"key": b"1"}, how],
    "increment": lambda how: ["increment", "key", 1, how],
    "commit": lambda how: ["commit", {"key": b"1"}, None, None, None, how],
    "set with another key": lambda how: ["set", {"other": b"", "key": b"1"}, how],
}
BEFORE = ("absent", "endless", "timed", "another's", "ours")
COMBINATIONS = list(itertools.product((None, NEW_TTL), (False, True), (False, True)))


def prepare(ends: "Ends", other: "Ends", before: str) -> None:
    """Make the key what it is before the write."""
    if before == "endless":
        ends.ask("set", {"key": b"0"})
    elif before == "timed":
        ends.ask("set", {"key": b"0"}, {"ttl": OLD_TTL})
    elif before in ("another's", "ours"):
        owner = other if before == "another's" else ends
        owner.ask("set", {"key": b"0"}, {"ephemeral": True, "ttl": OLD_TTL})


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize(("ttl", "keep_ttl", "ephemeral"), COMBINATIONS)
def test_how_decides_how_long_a_key_lives(
    ends: "Ends", write: str, before: str, ttl: int | None, keep_ttl: bool, ephemeral: bool
) -> None:
    other = ends.another()
    prepare(ends, other, before)
    how = {"keep_ttl": keep_ttl, "ephemeral": ephemeral, **({} if ttl is None else {"ttl": ttl})}
    assert ends.code(*WRITES[write](how)) == ""
    keeps = before != "absent" and (keep_ttl or (write == "increment" and ttl is None))
    had = None if before in ("absent", "endless") else OLD_TTL
    assert ends.ask("ttl", ["key"]) == [(had if keeps else ttl) or -1]
    # With ephemeral the key is ours, also where it keeps its deadline.
    owner = "ours" if ephemeral else before if keeps else ""
    other.disconnect()
    assert (value_of(ends, "key") is None) == (owner == "another's")
    ends.disconnect()
    assert (value_of(ends.another(), "key") is None) == (owner in ("another's", "ours"))


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize(("ttl", "expected"), [(None, 7), (5, 7)])
def test_a_key_may_have_a_ttl_of_its_own(ends: "Ends", write: str, ttl: int | None, expected: int) -> None:
    how = {"ttls": {"key": 7}, **({} if ttl is None else {"ttl": ttl})}
    prepare(ends, ends, "endless")
    assert ends.code(*WRITES[write](how)) == ""
    assert ends.ask("ttl", ["key"]) == [expected]


def test_ttls_are_for_some_keys_and_ttl_for_the_others(ends: "Ends") -> None:
    ends.ask("commit", {"a": b"", "b": b"", "c": b""}, {}, [], None, {"ttl": 100, "ttls": {"a": 200, "b": 300}})
    assert ends.ask("ttl", ["a", "b", "c"]) == [200, 300, 100]
    ends.ask("set", {"a": b"", "new": b""}, {"keep_ttl": True, "ttls": {"a": 5, "new": 6}})
    assert ends.ask("ttl", ["a", "new"]) == [200, 6], "a key that exists keeps its own"


@pytest.mark.parametrize("ttls", [{"nobody": 5}, {"key": 0}, {"key": -1}, {"key": 2**62}])
@pytest.mark.parametrize("write", WRITES)
def test_ttls_that_cannot_be_are_refused(ends: "Ends", write: str, ttls: dict[str, int]) -> None:
    assert ends.code(*WRITES[write]({"ttls": ttls})) == "bad_request"
    assert ends.metric("version") == 0


@pytest.mark.parametrize("how", [None, {}, {"sync": True}, {"sync": False}, {"sync": None}])
@pytest.mark.parametrize("write", ["set", "commit"])
def test_a_write_that_says_nothing_of_lives_gives_life_without_end(ends: "Ends", write: str, how: Any) -> None:  # noqa: ANN401
    prepare(ends, ends, "ours")
    ends.ask(*WRITES[write](how))
    assert ends.ask("ttl", ["key"]) == [-1]
    ends.disconnect()
    assert value_of(ends.another(), "key") == b"1"


@pytest.mark.parametrize(
    "how",
    [{"unknown": 1}, {"ttl": "5"}, {"keep_ttl": 1}, {"keep_ttl": None}, {"id": b"short"}, {"id": b"x" * 17}, [], True],
)
def test_a_how_of_a_wrong_form_refuses_its_frame(ends: "Ends", how: object) -> None:
    from msgspec.msgpack import encode

    reply = ends.frame(encode([["set", {"a": b""}], ["set", {"b": b""}, how]]))
    assert (reply["error"], ends.metric("version")) == ("bad_request", 0)


@pytest.mark.parametrize("write", ["set", "commit", "increment"])
@pytest.mark.parametrize("most", [0, 1, 3])
def test_the_ephemeral_keys_of_a_connection_are_limited(make_ends: MakeEnds, most: int, write: str) -> None:
    ends = make_ends(Limits(max_ephemeral_keys_per_connection=most))
    how = {"ephemeral": True}
    for number in range(most):
        assert ends.code("set", {f"{number}": b""}, how) == ""
    refused = ends.ask(*WRITES[write](how))
    assert (refused["error"], str(most) in refused["message"]) == ("too_large", True)
    assert value_of(ends, "key") is None
    assert ends.another().code(*WRITES[write](how)) == ("too_large" if most == 0 else "")
    if most:
        ends.ask("delete", ["0"])
        assert ends.code("set", {"again": b""}, how) == ""


def test_ephemeral_keys_go_in_one_commit_of_their_owner(ends: "Ends") -> None:
    other = ends.another(uid=7)
    other.batch(["set", {"a": b"", "b": b""}, {"ephemeral": True}], ["set", {"c": b""}, {"ephemeral": True}])
    ends.ask("set", {"c": b"mine now"})
    version = ends.metric("version")
    other.disconnect()
    assert ends.ask("get_many", ["a", "b", "c"]) == [None, None, b"mine now"]
    ((_, _, author, keys),) = ends.ask("log", version + 1, 9)
    assert (author, sorted(keys)) == ([7, None, "another"], ["a", "b"])
    other.disconnect()
    assert ends.metric("version") == version + 1
