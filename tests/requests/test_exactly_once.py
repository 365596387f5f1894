"""A write with an id takes effect once, however often it is sent and over any connection, or fails with an error."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvd.protocol.limits import Limits

if TYPE_CHECKING:
    from tests.harness.in_memory import InMemoryClient

Connect = Callable[..., "InMemoryClient"]
ID = b"0123456789abcdef"


def id_(number: int) -> bytes:
    return number.to_bytes(16, "big")


# Each kind of write on "n" or "gone", with its options. A second execution of any of them would be visible.
WRITES: dict[str, Callable[[Any], list[Any]]] = {
    "set": lambda options: ["set", {"n": b"7"}, options],
    "delete": lambda options: ["delete", ["gone"], False, options],
    "increment": lambda options: ["increment", "n", 1, options],
    "commit": lambda options: ["commit", {"n": b"7"}, {"n": 1}, None, None, options],
    "touch": lambda options: ["touch", ["n", "no"], 500, options],
}
every_write = pytest.mark.parametrize("write", WRITES)


@pytest.fixture
def client(connect: Connect) -> "InMemoryClient":
    """A connection of a user. At version 1 the store has the keys that the writes need."""
    client = connect(uid=7)
    client.ask("set", {"n": b"1", "gone": b""})
    return client


def visible_state(client: "InMemoryClient") -> list[Any]:
    """All visible results of the writes."""
    return [client.ask("log", 0, 100), client.ask("fetch", ["n", "gone"])]


@every_write
@pytest.mark.parametrize("since", [None, 1])
def test_a_write_that_is_sent_again_gets_its_first_reply_and_changes_nothing(
    client: "InMemoryClient", write: str, since: int | None
) -> None:
    request = WRITES[write]({"id": ID, "since": since})
    reply = client.ask(*request)
    assert not isinstance(reply, dict)
    before = visible_state(client)
    client.timer.now += 1_000
    assert client.ask(*request) == reply
    assert client.another(uid=7).ask(*request) == reply, "over another connection too"
    assert client.batch(["ping"], request, request) == [True, reply, reply]
    assert visible_state(client) == before


@every_write
def test_a_write_that_is_twice_in_one_frame_takes_effect_once(client: "InMemoryClient", write: str) -> None:
    request = WRITES[write]({"id": ID, "since": 1})
    first, second, third = client.batch(request, request, request)
    assert first == second == third
    assert client.metric("version") == 2


@every_write
def test_a_write_still_gets_its_first_reply_after_other_writes(client: "InMemoryClient", write: str) -> None:
    request = WRITES[write]({"id": ID, "since": 1})
    reply = client.ask(*request)
    client.batch(["set", {"n": b"100"}], ["set", {"gone": b"back"}])
    assert client.ask(*request) == reply
    assert client.ask("get_many", ["n", "gone"]) == [b"100", b"back"]


@every_write
def test_equal_ids_of_different_users_are_different(client: "InMemoryClient", write: str) -> None:
    options = {"id": ID, "since": 1}
    client.ask("set", {"x": b""}, options)
    assert client.metric("version") == 2
    other = client.another(uid=8)
    assert not isinstance(other.ask(*WRITES[write](options)), dict)
    assert client.metric("version") == 3


def test_all_tcp_peers_share_their_ids(connect: Connect) -> None:
    client = connect(uid=None, token="token")  # noqa: S106 - of no real daemon
    other = client.another(uid=None)
    for one in (client, other):
        one.ask("hello", 1, "test", "token")
    request = ["increment", "n", 1, {"id": ID}]
    assert client.ask(*request) == other.ask(*request) == [1, 1]


@every_write
def test_a_write_that_failed_is_not_remembered(client: "InMemoryClient", write: str) -> None:
    options = {"id": ID, "since": 1}
    failing = {
        "set": ["set", {"": b""}, options],
        "delete": ["delete", ["no"], False, options],
        "increment": ["increment", "gone", 1, options],
        "commit": ["commit", {"n": b""}, {"n": 99}, None, None, options],
        "touch": ["touch", ["n"], 0, options],
    }[write]
    assert client.code(*failing)
    assert client.metric("version") == 1
    assert not isinstance(client.ask(*WRITES[write](options)), dict)
    assert client.metric("version") == 2


def test_a_write_that_changed_nothing_is_not_remembered(client: "InMemoryClient") -> None:
    options = {"id": ID, "since": 1}
    for request in (
        ["set", {}, options],
        ["delete", ["no"], True, options],
        ["touch", ["no"], 1, options],
        ["commit", {}],
    ):
        assert not client.code(*request)
    assert client.ask("increment", "n", 1, options) == [2, 2]


@every_write
@pytest.mark.parametrize("since", [3, 2**63, 0, -1])
def test_the_outcome_of_a_forgotten_id_or_one_of_another_store_is_unknown(
    connect: Connect, write: str, since: int
) -> None:
    """``since`` 0 is before the oldest remembered id. Versions from 3 on never existed in this store."""
    client = connect(Limits(max_remembered_writes=1))
    client.ask("set", {"n": b"1", "gone": b""}, {"id": id_(1)})
    client.ask("set", {"m": b""}, {"id": id_(2)})
    error = client.ask(*WRITES[write]({"id": ID, "since": since}))
    assert (error["error"], error["version"]) == ("outcome_unknown", 2)
    assert client.metric("version") == 2, "the store is unchanged"
    assert not isinstance(client.ask(*WRITES[write]({"id": ID, "since": error["version"]})), dict)


@pytest.mark.parametrize("limit", [0, 1, 3, 10])
def test_the_number_of_remembered_writes_is_the_limit(connect: Connect, limit: int) -> None:
    client = connect(Limits(max_remembered_writes=limit))
    requests = [["increment", f"{number}", 1, {"id": id_(number), "since": number}] for number in range(12)]
    replies = [client.ask(*request) for request in requests]
    assert replies == [[1, number + 1] for number in range(12)]
    again = [client.ask(*request) for request in reversed(requests)][::-1]
    assert again[12 - limit :] == replies[12 - limit :]
    assert {reply["error"] for reply in again[: 12 - limit]} == {"outcome_unknown"}
    assert client.metric("version") == 12


def test_a_lowered_limit_applies_from_the_next_write_on(connect: Connect) -> None:
    client = connect()
    for number in range(5):
        client.ask("set", {"a": b""}, {"id": id_(number)})
    client.server.set_limits(Limits(max_remembered_writes=2))
    client.ask("set", {"a": b""}, {"id": id_(5)})
    assert len(client.database.outcomes) == 2
    assert client.code("set", {"a": b""}, {"id": id_(3), "since": 3}) == "outcome_unknown"


# ---------------------------------------------------------------------- runs of sets (a code path of their own)


def test_a_run_of_sets_with_ids_takes_effect_once(client: "InMemoryClient") -> None:
    run = [["set", {f"{number}": b"x"}, {"id": id_(number), "since": 1}] for number in range(10)]
    replies = client.batch(*run)
    assert replies == list(range(2, 12))
    assert client.batch(*run) == replies
    assert client.batch(*reversed(run)) == replies[::-1]
    another = ["set", {"more": b""}, {"id": id_(99), "since": 1}]
    assert client.batch(*run[:5], another, *run[5:]) == [*replies[:5], 12, *replies[5:]], "the others had already run"
    assert client.batch(run[3], run[3]) == [replies[3]] * 2


def test_an_id_that_is_twice_in_a_run_takes_effect_once(client: "InMemoryClient") -> None:
    one, two = (["set", {key: b"x"}, {"id": id_(ord(key)), "since": 1}] for key in "ab")
    assert client.batch(one, two, one, two, one) == [2, 3, 2, 3, 2]
    assert client.metric("version") == 3


def test_a_set_with_an_unknown_outcome_does_not_stop_the_others_of_its_run(client: "InMemoryClient") -> None:
    replies = client.batch(
        ["set", {"a": b""}, {"id": id_(1), "since": 1}],
        ["set", {"b": b""}, {"id": id_(2), "since": 99}],
        ["set", {"c": b""}, {"id": id_(3)}],
    )
    assert [reply if isinstance(reply, int) else reply["error"] for reply in replies] == [2, "outcome_unknown", 3]
    assert client.ask("get_many", ["a", "b", "c"]) == [b"", None, b""]


def test_an_empty_set_in_a_run_makes_no_commit(client: "InMemoryClient") -> None:
    run = [["set", {"a": b""}, {"id": id_(1)}], ["set", {}, {"id": id_(2)}], ["set", {"b": b""}, {"id": id_(3)}]]
    assert client.batch(*run) == [2, 2, 3]
    assert client.batch(*run) == [2, 3, 3], "a write that changed nothing is not remembered"


@pytest.mark.parametrize("more", [{"ephemeral": True}, {"ttl": 5}, {"ttls": {}, "ttl": 5}, {"keep_ttl": True}])
def test_a_run_of_sets_with_ids_respects_their_other_options(client: "InMemoryClient", more: dict[str, Any]) -> None:
    client.ask("set", {"a": b"", "b": b""}, {"ttl": 9})
    run = [["set", {key: b"x"}, {"id": id_(ord(key)), **more}] for key in "ab"]
    assert client.batch(*run) == client.batch(*run) == [3, 4]
    assert (
        client.ask("ttl", ["a", "b"]) == [{"ephemeral": -1, "ttl": 5, "ttls": 5, "keep_ttl": 9}[next(iter(more))]] * 2
    )
    client.disconnect()
    assert client.another().ask("get_many", ["a", "b"]) == ([None, None] if "ephemeral" in more else [b"x", b"x"])


write_options = st.one_of(
    st.none(),
    st.just({}),
    st.fixed_dictionaries({"id": st.integers(0, 4).map(id_)}, optional={"since": st.none() | st.integers(-1, 12)}),
    st.fixed_dictionaries({"id": st.integers(0, 4).map(id_), "ttl": st.just(1_000)}),
    st.fixed_dictionaries({"ephemeral": st.just(True)}),
)
sets = st.tuples(
    st.just("set"), st.dictionaries(st.sampled_from(["a", "b", "c", ""]), st.binary(max_size=2)), write_options
)


@given(st.lists(st.lists(sets, min_size=1, max_size=6), max_size=5))
def test_a_run_has_the_replies_and_effects_of_its_sets_one_by_one(
    connect: Connect, runs: list[list[tuple[Any, ...]]]
) -> None:
    together, apart = connect(), connect()
    for run in runs:
        replies = together.batch(*map(list, run))
        assert replies == [apart.ask(*request) for request in run]
    assert [[version, keys] for version, _, _, keys in together.ask("log", 0, 100)] == [
        [version, keys] for version, _, _, keys in apart.ask("log", 0, 100)
    ]
    assert together.ask("fetch", ["a", "b", "c"]) == apart.ask("fetch", ["a", "b", "c"])


def test_ids_work_in_large_frames(client: "InMemoryClient") -> None:
    from msgspec.msgpack import encode

    run = [["set", {f"{number}": b"x" * 100}, {"id": id_(number), "since": 1}] for number in range(2_000)]
    first = client.sliced(encode(run))
    assert first == list(range(2, 2_002))
    assert client.sliced(encode(run)) == first
    assert client.metric("version") == 2_001
