"""Requests that read versions: fetch, snapshots, history, log, version_at, watch."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from kvd.protocol.limits import Limits
from kvd.protocol.messages import decode_batch
from kvd.requests.access import Identity
from kvd.store.prefixes import PrefixRule, PrefixRules

if TYPE_CHECKING:
    from tests.harness.in_memory import InMemoryClient

Connect = Callable[..., "InMemoryClient"]
AUTHOR = [0, None, "test"]


@pytest.fixture
def client(connect: Connect) -> "InMemoryClient":
    """A connection of root."""
    return connect(uid=0)


def without_history(connect: Connect) -> "InMemoryClient":
    """A connection to a store whose history keeps only pinned versions."""
    return connect(max_commits=0)


# ---------------------------------------------------------------------- fetch


def test_fetch_answers_values_with_versions_and_deadlines(client: "InMemoryClient") -> None:
    first = client.ask("set", {"a": b"1"})
    second = client.ask("set", {"b": b"", "c": b"3"}, {"ttl": 5})
    deadline = client.timer.now + 5_000
    assert client.ask("fetch", ["b", "no", "a", "b"]) == [
        [b"", second, None, None, deadline], [None, 0, None, None, None], [b"1", first, None, None, None],
        [b"", second, None, None, deadline],
    ]  # fmt: skip
    assert client.ask("fetch", []) == []
    assert client.ask("fetch", ["a"], None) == [[b"1", first, None, None, None]]


def test_fetch_at_a_version_answers_its_values_and_no_deadlines(client: "InMemoryClient") -> None:
    first = client.ask("set", {"a": b"1", "b": b"2"}, {"ttl": 5})
    client.batch(["set", {"a": b"new"}], ["delete", ["b"]])
    assert client.ask("fetch", ["a", "b"], first) == [[b"1", first, None, None, None], [b"2", first, None, None, None]]
    assert client.ask("fetch", ["b"]) == [[None, 0, None, None, None]], "a deleted key is absent"
    assert client.ask("fetch", ["a"], 0) == [[None, 0, None, None, None]]


READS: dict[str, Callable[[Any], list[Any]]] = {
    "fetch": lambda at: ["fetch", ["a"], at],
    "get_many": lambda at: ["get_many", ["a"], at],
    "scan": lambda at: ["scan", "", None, 9, at],
}


@pytest.mark.parametrize("read", READS)
def test_versions_are_readable_from_the_oldest_readable_to_the_current_one(connect: Connect, read: str) -> None:
    client = connect(max_commits=3)
    for number in range(20):
        client.ask("set", {"a": b"%d" % number})
    oldest, newest = client.metric("oldest_readable_version"), client.metric("version")
    assert 0 < oldest < newest
    before, after = client.ask(*READS[read](oldest - 1)), client.ask(*READS[read](newest + 1))
    assert (before["error"], before["oldest_readable"]) == ("snapshot_gone", oldest)
    assert after["error"] == "bad_request"
    assert client.ask(*READS[read](-2))["error"] == "snapshot_gone"
    for at in (oldest, newest):
        assert b"%d" % (at - 1) in str(client.ask(*READS[read](at))).encode()


@pytest.mark.parametrize("read", READS)
def test_a_value_whose_prefix_has_a_shorter_history_is_gone(client: "InMemoryClient", read: str) -> None:
    """The clock of these commits advances a microsecond with each reading."""
    client.database.memory.set_rules(PrefixRules([PrefixRule(prefix="a", history_ms=1)]))
    client.batch(["set", {"a": b"old", "other": b"old"}], ["set", {"a": b"new"}])
    client.database.store.advance(client.database.store.time + 2_000)
    request = READS[read](1)
    assert client.ask(*request)["error"] == "snapshot_gone"
    assert client.ask(*request)["oldest_readable"] == 2
    assert client.code(*READS[read](2)) == ""
    assert client.ask("get_many", ["other"], 1) == [b"old"]
    assert client.ask("history", "a", 9)[0][:2] == [2, b"new"]
    assert len(client.ask("history", "a", 9)) == 1
    assert [commit[0] for commit in client.ask("log", 1, 9)] == [1, 2]


@pytest.mark.parametrize("read", READS)
def test_minus_one_is_the_newest_snapshot_of_the_connection(client: "InMemoryClient", read: str) -> None:
    assert client.ask(*READS[read](-1))["error"] == "bad_request"
    client.ask("set", {"a": b"old"})
    snapshot, page = client.batch(["begin"], READS[read](-1))
    assert snapshot == client.metric("version")
    assert b"old" in str(page).encode()
    client.ask("set", {"a": b"new"})
    assert client.ask(*READS[read](-1)) == page
    later, later_page = client.batch(["begin"], READS[read](-1))
    assert later > snapshot
    assert b"new" in str(later_page).encode()
    assert client.another().ask(*READS[read](-1))["error"] == "bad_request", "another connection has its own snapshots"


def test_a_snapshot_is_kept_readable_until_its_end(connect: Connect) -> None:
    client = without_history(connect)
    client.ask("set", {"a": b"old"})
    snapshot = client.ask("begin")
    for _ in range(9):
        client.ask("set", {"a": b"new"})
    assert client.ask("get_many", ["a"], snapshot) == [b"old"]
    assert client.another().ask("get_many", ["a"], snapshot) == [b"old"], "any connection may read at it"
    assert client.batch(["end", snapshot], ["end", snapshot]) == [True, False]
    client.ask("set", {"a": b"new"})
    assert client.ask("get_many", ["a"], snapshot)["error"] == "snapshot_gone"


def test_a_snapshot_ends_with_its_connection(connect: Connect) -> None:
    client = without_history(connect)
    client.ask("set", {"a": b"old"})
    other = client.another()
    snapshot, again = other.batch(["begin"], ["begin"])
    assert snapshot == again
    assert client.ask("end", snapshot) is False, "the other connection holds it"
    other.disconnect()
    for _ in range(2):
        client.ask("set", {"a": b"new"})
    assert client.code("get_many", ["a"], snapshot) == "snapshot_gone"
    assert len(client.server.snapshots) == 0


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_the_snapshots_of_a_connection_are_limited(connect: Connect, limit: int) -> None:
    client = connect(Limits(max_snapshots_per_connection=limit))
    begun = client.batch(*[["begin"]] * limit, ["ping"])
    assert begun == [0] * limit + [True]
    reply = client.ask("begin")
    assert (reply["error"], str(limit) in reply["message"]) == ("too_large", True)
    if limit:
        assert client.batch(["end", 0], ["begin"]) == [True, 0]


def test_a_snapshot_that_is_read_is_kept_and_an_idle_one_is_released(connect: Connect) -> None:
    client = without_history(connect)
    read, idle = client, client.another()
    first = idle.ask("begin")
    client.ask("set", {"a": b"1"})
    second = read.ask("begin")
    for _ in range(3):
        client.timer.now += 600
        assert read.ask("fetch", ["a"], second)[0][0] == b"1"
        client.server.snapshots.release_idle(1_000)
        client.ask("set", {"a": b"2"})
    assert read.ask("end", second) is True
    assert idle.ask("end", first) is False
    assert idle.ask("fetch", ["a"], -1)["error"] == "snapshot_gone"


# ---------------------------------------------------------------------- history


def test_history_answers_the_versions_of_a_key_newest_first(client: "InMemoryClient") -> None:
    first = client.ask("set", {"a": b"1", "b": b"x"})
    deleted, _ = client.ask("delete", ["a"])
    client.ask("set", {"b": b"y"})
    last = client.ask("set", {"a": b"2"})
    history = client.ask("history", "a", 10)
    assert [[version, value, author] for version, value, _, author in history] == [
        [last, b"2", AUTHOR], [deleted, None, AUTHOR], [first, b"1", AUTHOR],
    ]  # fmt: skip
    times = [time for _, _, time, _ in history]
    assert times == sorted(times, reverse=True)
    assert len(set(times)) == 3
    assert client.ask("history", "a", 2) == history[:2]
    assert client.ask("history", "a", 10, last) == history[1:]
    assert client.ask("history", "a", 10, last + 1) == history
    assert client.ask("history", "a", 10, first) == []
    assert client.ask("history", "never", 10) == []


def test_history_is_paged_by_before(client: "InMemoryClient") -> None:
    versions = [client.ask("set", {"a": b"%d" % number}) for number in range(25)]
    entries: list[Any] = []
    while page := client.ask("history", "a", 10, *([entries[-1][0]] if entries else [])):
        assert len(page) <= 10
        entries += page
    assert [(version, value) for version, value, *_ in entries] == [
        (version, b"%d" % number) for number, version in reversed(list(enumerate(versions)))
    ]


def test_history_has_no_author_when_the_commit_has_left_the_log(connect: Connect) -> None:
    client = connect(max_commits=2)
    version = client.ask("set", {"a": b"1"})
    for _ in range(20):
        client.ask("set", {"b": b""})
    assert client.ask("history", "a", 10) == [[version, b"1", None, None]]


def test_history_has_the_author_of_each_version(client: "InMemoryClient") -> None:
    client.another(uid=7).ask("set", {"a": b"1"})
    client.another(uid=None).ask("hello", 1, "tcp")
    client.ask("set", {"t": b""}, {"ttl": 1})
    client.timer.now += 1_000
    assert client.ask("history", "t", 1)[0][1:2] + client.ask("history", "t", 1)[0][3:] == [
        None,
        [None, None, "expired"],
    ]
    assert client.ask("history", "a", 1)[0][3] == [7, None, "another"]


# ---------------------------------------------------------------------- log


def test_log_answers_commits_oldest_first_from_a_version_on(client: "InMemoryClient") -> None:
    first = client.ask("set", {"a": b"1", "b": b"2"})
    second = client.another(uid=7).ask("set", {"c": b"3"})
    third, _ = client.ask("delete", ["a"])
    log = client.ask("log", 0, 10)
    assert [[version, author, keys] for version, _, author, keys in log] == [
        [first, AUTHOR, ["a", "b"]], [second, [7, None, "another"], ["c"]], [third, AUTHOR, ["a"]],
    ]  # fmt: skip
    assert client.ask("log", second, 10) == log[1:]
    assert client.ask("log", first, 1) == log[:1]
    assert client.ask("log", third + 1, 10) == []
    assert client.ask("log", 2**64 - 1, 10) == []


def test_log_from_nil_answers_the_newest_commits(client: "InMemoryClient") -> None:
    for number in range(10):
        client.ask("set", {"a": b"%d" % number})
    whole = client.ask("log", 0, 100)
    assert client.ask("log", None, 3) == whole[-3:]
    assert client.ask("log", None, 100) == whole
    assert [version for version, *_ in whole] == list(range(1, 11))


def test_log_from_nil_answers_the_newest_commits_before_a_version(client: "InMemoryClient") -> None:
    for number in range(4):
        client.ask("set", {"a": b"%d" % number})
    client.batch(*[["set", {f"b{number}": b""}] for number in range(4)])  # one group
    whole = client.ask("log", 0, 100)
    for before in range(10):
        for limit in range(1, 10):
            expected = [commit for commit in whole if commit[0] < before][-limit:]
            assert client.ask("log", None, limit, before) == expected
    assert client.ask("log", 0, 9, 3)["error"] == "bad_request"


def test_log_answers_the_commits_of_one_frame_one_by_one(client: "InMemoryClient") -> None:
    client.ask("set", dict.fromkeys("abc", b""))
    versions = client.batch(*[["set", {key: b""}] for key in "abc"])
    assert [[version, keys] for version, _, _, keys in client.ask("log", versions[1], 9)] == [
        [versions[1], ["b"]], [versions[2], ["c"]],
    ]  # fmt: skip
    assert [keys for *_, keys in client.ask("log", None, 2)] == [["b"], ["c"]]


def test_log_from_a_pruned_version_is_snapshot_gone(connect: Connect) -> None:
    client = connect(max_commits=3)
    for _ in range(20):
        client.ask("set", {"a": b""})
    oldest = client.metric("oldest_readable_version")
    assert len(client.ask("log", oldest + 1, 100)) == 20 - oldest, "all later commits are known"
    reply = client.ask("log", oldest, 100)
    assert (reply["error"], reply["oldest_readable"]) == ("snapshot_gone", oldest)
    assert len(client.ask("log", None, 100)) == 20 - oldest


def test_a_page_of_the_log_is_limited_by_keys_and_has_at_least_one_commit(client: "InMemoryClient") -> None:
    client.ask("set", {f"{number:05}": b"" for number in range(60_000)})
    client.ask("set", {f"{number:05}": b"" for number in range(60_000)})
    assert [len(keys) for *_, keys in client.ask("log", 0, 10)] == [60_000]
    assert [version for version, *_ in client.ask("log", None, 10)] == [2]


@pytest.mark.parametrize("request_", [["history", "a"], ["log", None], ["log", 0]])
@pytest.mark.parametrize(
    ("limit", "code"), [(-1, "bad_request"), (0, "bad_request"), (1, ""), (5, ""), (6, "bad_request")]
)
def test_the_limit_of_a_page_of_history_or_log_is_limited(
    connect: Connect, request_: list[Any], limit: int, code: str
) -> None:
    assert connect(Limits(max_keys_per_request=5)).code(*request_, limit) == code


# ---------------------------------------------------------------------- version_at


def test_version_at_answers_the_version_that_was_current_at_a_time(client: "InMemoryClient") -> None:
    for number in range(5):
        client.ask("set", {"a": b"%d" % number})
    log = [(version, time) for version, time, *_ in client.ask("log", 0, 10)]
    assert client.ask("version_at", 0) == 0
    assert client.ask("version_at", log[0][1] - 1) == 0
    for version, time in log:
        assert client.ask("version_at", time) == version
    assert client.ask("version_at", 2**63) == log[-1][0]


def test_version_at_a_pruned_time_is_snapshot_gone(connect: Connect) -> None:
    client = connect(max_commits=3)
    for _ in range(20):
        client.ask("set", {"a": b""})
    oldest = client.metric("oldest_readable_version")
    first_time = client.ask("log", oldest + 1, 1)[0][1]
    reply = client.ask("version_at", 0)
    assert (reply["error"], reply["oldest_readable"]) == ("snapshot_gone", oldest)
    assert client.ask("version_at", first_time - 1) == oldest
    assert client.ask("version_at", first_time) == oldest + 1


# ---------------------------------------------------------------------- watch


def test_watch_is_answered_in_order_and_once(client: "InMemoryClient") -> None:
    replies = client.batch(["set", {"a": b"1"}], ["watch", ""], ["get", "a"], ["watch", ""])
    assert replies[:3] == [1, True, b"1"]
    assert replies[3]["error"] == "bad_request"
    assert len(client.server.feeds) == 1
    client.disconnect()
    assert len(client.server.feeds) == 0


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_the_watches_of_a_user_are_limited(connect: Connect, limit: int) -> None:
    first = connect(Limits(max_watches_per_uid=limit), uid=65_533)
    watching = [first.another(uid=65_533) for _ in range(limit)]
    assert [one.ask("watch", "a", 0) for one in watching] == [True] * limit
    reply = first.ask("watch", "")
    assert (reply["error"], str(limit) in reply["message"]) == ("busy", True)
    assert first.ask("ping") is True, "the connection stays usable"
    assert first.another(uid=65_532).code("watch", "") == ("busy" if limit == 0 else "")
    assert first.another(uid=0).ask("watch", "") is True, "administrators are not counted"
    if limit:
        watching[0].disconnect()
        assert first.ask("watch", "") is True


@pytest.mark.parametrize("kind", ["get_many", "fetch"])
def test_several_reads_of_old_versions_run_in_slices(connect: Connect, kind: str) -> None:
    """Each of them may have to pass over a million versions."""
    client = connect()
    version = client.ask("set", {"a": b"1"})

    def run(*requests: list[object]) -> object:
        payload = msgspec.msgpack.encode(requests)
        return client.run(decode_batch(payload), len(payload))

    assert run([kind, ["a"], version], [kind, ["a"], version]) is not None, "nothing was committed since"
    client.batch(*[["set", {"b": b""}]] * 20_000)
    assert run([kind, ["a"], version], [kind, ["a"], version]) is None
    assert run([kind, ["a"]], [kind, ["a"]]) is not None
    assert run(["begin"], [kind, ["a"], -1]) is not None
    one, other = client.batch([kind, ["a"], version], [kind, ["a"], version])
    assert one == other


@pytest.mark.parametrize("name", ["expired", "evicted", "restarted"])
@pytest.mark.parametrize("shown", ["token", "certificate"])
def test_a_client_cannot_pose_as_the_server_in_its_commits(client: "InMemoryClient", name: str, shown: str) -> None:
    one = client.another(uid=None)
    one.peer.authenticate_as(Identity(**{shown: name}))
    one.ask("set", {"a": b""})
    assert client.ask("history", "a", 1)[0][3] == [None, None, f"{shown} {name}"]


def test_over_tcp_each_authenticated_identity_is_a_user(connect: Connect) -> None:
    client = connect(Limits(max_watches_per_uid=1))

    def connect_as(**identity: str) -> "InMemoryClient":
        one = client.another(uid=None)
        one.peer.authenticate_as(Identity(**identity))
        return one

    for identity in ({"token": "ann"}, {"token": "bob"}, {"certificate": "ann"}, {}):
        assert connect_as(**identity).ask("watch", "") is True
        assert connect_as(**identity).code("watch", "") == "busy"


def test_the_length_of_a_prefix_is_limited_like_that_of_a_key(connect: Connect) -> None:
    for prefix, code in (("", ""), ("12345", ""), ("é" * 2, ""), ("123456", "too_large"), ("é" * 3, "too_large")):
        assert connect(Limits(max_key_bytes=5)).code("watch", prefix) == code
