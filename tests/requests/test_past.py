"""Requests that look at versions: fetch, snapshots, history, log, version_at."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from kvd.protocol.limits import Limits
from kvd.protocol.messages import decode_batch
from kvd.requests.access import Identity
from kvd.store.prefixes import PrefixRule, PrefixRules

if TYPE_CHECKING:
    from tests.requests.conftest import Ends

MakeEnds = Callable[..., "Ends"]
AUTHOR = [0, None, "test"]


@pytest.fixture
def ends(make_ends: MakeEnds) -> "Ends":
    """A connection of root's."""
    return make_ends(uid=0)


def without_history(make_ends: MakeEnds) -> "Ends":
    """One whose history keeps nothing that is not pinned."""
    return make_ends(max_commits=0)


# ---------------------------------------------------------------------- fetch


def test_fetch_answers_values_with_versions_and_deadlines(ends: "Ends") -> None:
    first = ends.ask("set", {"a": b"1"})
    second = ends.ask("set", {"b": b"", "c": b"3"}, {"ttl": 5})
    deadline = ends.timer.now + 5_000
    assert ends.ask("fetch", ["b", "no", "a", "b"]) == [
        [b"", second, None, None, deadline], [None, 0, None, None, None], [b"1", first, None, None, None],
        [b"", second, None, None, deadline],
    ]  # fmt: skip
    assert ends.ask("fetch", []) == []
    assert ends.ask("fetch", ["a"], None) == [[b"1", first, None, None, None]]


def test_fetch_at_a_version_answers_what_was_and_no_deadline(ends: "Ends") -> None:
    first = ends.ask("set", {"a": b"1", "b": b"2"}, {"ttl": 5})
    ends.batch(["set", {"a": b"new"}], ["delete", ["b"]])
    assert ends.ask("fetch", ["a", "b"], first) == [[b"1", first, None, None, None], [b"2", first, None, None, None]]
    assert ends.ask("fetch", ["b"]) == [[None, 0, None, None, None]], "a deleted key is an absent one"
    assert ends.ask("fetch", ["a"], 0) == [[None, 0, None, None, None]]


READS: dict[str, Callable[[Any], list[Any]]] = {
    "fetch": lambda at: ["fetch", ["a"], at],
    "get_many": lambda at: ["get_many", ["a"], at],
    "scan": lambda at: ["scan", "", None, 9, at],
}


@pytest.mark.parametrize("read", READS)
def test_one_reads_from_the_oldest_readable_version_to_the_current_one(make_ends: MakeEnds, read: str) -> None:
    ends = make_ends(max_commits=3)
    for number in range(20):
        ends.ask("set", {"a": b"%d" % number})
    oldest, newest = ends.metric("oldest_readable_version"), ends.metric("version")
    assert 0 < oldest < newest
    before, after = ends.ask(*READS[read](oldest - 1)), ends.ask(*READS[read](newest + 1))
    assert (before["error"], before["oldest_readable"]) == ("snapshot_gone", oldest)
    assert after["error"] == "bad_request"
    assert ends.ask(*READS[read](-2))["error"] == "snapshot_gone"
    for at in (oldest, newest):
        assert b"%d" % (at - 1) in str(ends.ask(*READS[read](at))).encode()


@pytest.mark.parametrize("read", READS)
def test_a_value_whose_prefix_has_a_shorter_history_is_gone(ends: "Ends", read: str) -> None:
    """The clock of these commits ticks a microsecond each time it is asked."""
    ends.database.memory.set_rules(PrefixRules([PrefixRule(prefix="a", history_ms=1)]))
    ends.batch(["set", {"a": b"old", "other": b"old"}], ["set", {"a": b"new"}])
    ends.database.store.advance(ends.database.store.time + 2_000)
    request = READS[read](1)
    assert ends.ask(*request)["error"] == "snapshot_gone"
    assert ends.ask(*request)["oldest_readable"] == 2
    assert ends.code(*READS[read](2)) == ""
    assert ends.ask("get_many", ["other"], 1) == [b"old"]
    assert ends.ask("history", "a", 9)[0][:2] == [2, b"new"]
    assert len(ends.ask("history", "a", 9)) == 1
    assert [commit[0] for commit in ends.ask("log", 1, 9)] == [1, 2]


@pytest.mark.parametrize("read", READS)
def test_minus_one_is_the_snapshot_begun_last(ends: "Ends", read: str) -> None:
    assert ends.ask(*READS[read](-1))["error"] == "bad_request"
    ends.ask("set", {"a": b"old"})
    snapshot, found = ends.batch(["begin"], READS[read](-1))
    assert snapshot == ends.metric("version")
    assert b"old" in str(found).encode()
    ends.ask("set", {"a": b"new"})
    assert ends.ask(*READS[read](-1)) == found
    later, found_later = ends.batch(["begin"], READS[read](-1))
    assert later > snapshot
    assert b"new" in str(found_later).encode()
    assert ends.another().ask(*READS[read](-1))["error"] == "bad_request", "it is this connection's own"


def test_a_snapshot_is_kept_readable_until_its_end(make_ends: MakeEnds) -> None:
    ends = without_history(make_ends)
    ends.ask("set", {"a": b"old"})
    snapshot = ends.ask("begin")
    for _ in range(9):
        ends.ask("set", {"a": b"new"})
    assert ends.ask("get_many", ["a"], snapshot) == [b"old"]
    assert ends.another().ask("get_many", ["a"], snapshot) == [b"old"], "whoever reads there"
    assert ends.batch(["end", snapshot], ["end", snapshot]) == [True, False]
    ends.ask("set", {"a": b"new"})
    assert ends.ask("get_many", ["a"], snapshot)["error"] == "snapshot_gone"


def test_a_snapshot_ends_with_its_connection(make_ends: MakeEnds) -> None:
    ends = without_history(make_ends)
    ends.ask("set", {"a": b"old"})
    other = ends.another()
    snapshot, again = other.batch(["begin"], ["begin"])
    assert snapshot == again
    assert ends.ask("end", snapshot) is False, "it is the other's"
    other.disconnect()
    for _ in range(2):
        ends.ask("set", {"a": b"new"})
    assert ends.code("get_many", ["a"], snapshot) == "snapshot_gone"
    assert len(ends.commands.snapshots) == 0


@pytest.mark.parametrize("most", [0, 1, 3])
def test_the_snapshots_of_a_connection_are_limited(make_ends: MakeEnds, most: int) -> None:
    ends = make_ends(Limits(max_snapshots_per_connection=most))
    begun = ends.batch(*[["begin"]] * most, ["ping"])
    assert begun == [0] * most + [True]
    refused = ends.ask("begin")
    assert (refused["error"], str(most) in refused["message"]) == ("too_large", True)
    if most:
        assert ends.batch(["end", 0], ["begin"]) == [True, 0]


def test_reading_at_a_snapshot_keeps_it_and_not_reading_lets_it_go(make_ends: MakeEnds) -> None:
    ends = without_history(make_ends)
    read, idle = ends, ends.another()
    first = idle.ask("begin")
    ends.ask("set", {"a": b"1"})
    second = read.ask("begin")
    for _ in range(3):
        ends.timer.now += 600
        assert read.ask("fetch", ["a"], second)[0][0] == b"1"
        ends.commands.snapshots.release_idle(1_000)
        ends.ask("set", {"a": b"2"})
    assert read.ask("end", second) is True
    assert idle.ask("end", first) is False
    assert idle.ask("fetch", ["a"], -1)["error"] == "snapshot_gone"


# ---------------------------------------------------------------------- history


def test_history_tells_the_versions_of_a_key_newest_first(ends: "Ends") -> None:
    first = ends.ask("set", {"a": b"1", "b": b"x"})
    deleted, _ = ends.ask("delete", ["a"])
    ends.ask("set", {"b": b"y"})
    last = ends.ask("set", {"a": b"2"})
    history = ends.ask("history", "a", 10)
    assert [[version, value, author] for version, value, _, author in history] == [
        [last, b"2", AUTHOR], [deleted, None, AUTHOR], [first, b"1", AUTHOR],
    ]  # fmt: skip
    times = [time for _, _, time, _ in history]
    assert times == sorted(times, reverse=True)
    assert len(set(times)) == 3
    assert ends.ask("history", "a", 2) == history[:2]
    assert ends.ask("history", "a", 10, last) == history[1:]
    assert ends.ask("history", "a", 10, last + 1) == history
    assert ends.ask("history", "a", 10, first) == []
    assert ends.ask("history", "never", 10) == []


def test_history_is_paged_by_before(ends: "Ends") -> None:
    versions = [ends.ask("set", {"a": b"%d" % number}) for number in range(25)]
    told: list[Any] = []
    while page := ends.ask("history", "a", 10, *([told[-1][0]] if told else [])):
        assert len(page) <= 10
        told += page
    assert [(version, value) for version, value, *_ in told] == [
        (version, b"%d" % number) for number, version in reversed(list(enumerate(versions)))
    ]


def test_history_names_nobody_where_the_commit_has_left(make_ends: MakeEnds) -> None:
    ends = make_ends(max_commits=2)
    version = ends.ask("set", {"a": b"1"})
    for _ in range(20):
        ends.ask("set", {"b": b""})
    assert ends.ask("history", "a", 10) == [[version, b"1", None, None]]


def test_who_writes_is_told_with_what_was_written(ends: "Ends") -> None:
    ends.another(uid=7).ask("set", {"a": b"1"})
    ends.another(uid=None).ask("hello", 1, "tcp")
    ends.ask("set", {"t": b""}, {"ttl": 1})
    ends.timer.now += 1_000
    assert ends.ask("history", "t", 1)[0][1:2] + ends.ask("history", "t", 1)[0][3:] == [None, [None, None, "expired"]]
    assert ends.ask("history", "a", 1)[0][3] == [7, None, "another"]


# ---------------------------------------------------------------------- log


def test_log_tells_commits_oldest_first_from_a_version_on(ends: "Ends") -> None:
    first = ends.ask("set", {"a": b"1", "b": b"2"})
    second = ends.another(uid=7).ask("set", {"c": b"3"})
    third, _ = ends.ask("delete", ["a"])
    log = ends.ask("log", 0, 10)
    assert [[version, author, keys] for version, _, author, keys in log] == [
        [first, AUTHOR, ["a", "b"]], [second, [7, None, "another"], ["c"]], [third, AUTHOR, ["a"]],
    ]  # fmt: skip
    assert ends.ask("log", second, 10) == log[1:]
    assert ends.ask("log", first, 1) == log[:1]
    assert ends.ask("log", third + 1, 10) == []
    assert ends.ask("log", 2**64 - 1, 10) == []


def test_log_from_nil_tells_the_newest(ends: "Ends") -> None:
    for number in range(10):
        ends.ask("set", {"a": b"%d" % number})
    whole = ends.ask("log", 0, 100)
    assert ends.ask("log", None, 3) == whole[-3:]
    assert ends.ask("log", None, 100) == whole
    assert [version for version, *_ in whole] == list(range(1, 11))


def test_log_tells_commits_of_one_frame_one_by_one(ends: "Ends") -> None:
    ends.ask("set", dict.fromkeys("abc", b""))
    versions = ends.batch(*[["set", {key: b""}] for key in "abc"])
    assert [[version, keys] for version, _, _, keys in ends.ask("log", versions[1], 9)] == [
        [versions[1], ["b"]], [versions[2], ["c"]],
    ]  # fmt: skip
    assert [keys for *_, keys in ends.ask("log", None, 2)] == [["b"], ["c"]]


def test_log_of_what_has_left_the_history_is_gone(make_ends: MakeEnds) -> None:
    ends = make_ends(max_commits=3)
    for _ in range(20):
        ends.ask("set", {"a": b""})
    oldest = ends.metric("oldest_readable_version")
    assert len(ends.ask("log", oldest + 1, 100)) == 20 - oldest, "all commits behind it are known"
    refused = ends.ask("log", oldest, 100)
    assert (refused["error"], refused["oldest_readable"]) == ("snapshot_gone", oldest)
    assert len(ends.ask("log", None, 100)) == 20 - oldest


def test_a_page_of_the_log_ends_after_its_keys_and_holds_at_least_one_commit(ends: "Ends") -> None:
    ends.ask("set", {f"{number:05}": b"" for number in range(60_000)})
    ends.ask("set", {f"{number:05}": b"" for number in range(60_000)})
    assert [len(keys) for *_, keys in ends.ask("log", 0, 10)] == [60_000]
    assert [version for version, *_ in ends.ask("log", None, 10)] == [2]


@pytest.mark.parametrize("request_", [["history", "a"], ["log", None], ["log", 0]])
@pytest.mark.parametrize(
    ("limit", "code"), [(-1, "bad_request"), (0, "bad_request"), (1, ""), (5, ""), (6, "bad_request")]
)
def test_the_limit_of_a_page_of_the_past_is_limited(
    make_ends: MakeEnds, request_: list[Any], limit: int, code: str
) -> None:
    assert make_ends(Limits(max_keys_per_request=5)).code(*request_, limit) == code


# ---------------------------------------------------------------------- version_at


def test_version_at_tells_what_was_current_at_a_time(ends: "Ends") -> None:
    for number in range(5):
        ends.ask("set", {"a": b"%d" % number})
    log = [(version, time) for version, time, *_ in ends.ask("log", 0, 10)]
    assert ends.ask("version_at", 0) == 0
    assert ends.ask("version_at", log[0][1] - 1) == 0
    for version, time in log:
        assert ends.ask("version_at", time) == version
    assert ends.ask("version_at", 2**63) == log[-1][0]


def test_a_time_that_has_left_the_history_is_gone(make_ends: MakeEnds) -> None:
    ends = make_ends(max_commits=3)
    for _ in range(20):
        ends.ask("set", {"a": b""})
    oldest = ends.metric("oldest_readable_version")
    first_time = ends.ask("log", oldest + 1, 1)[0][1]
    refused = ends.ask("version_at", 0)
    assert (refused["error"], refused["oldest_readable"]) == ("snapshot_gone", oldest)
    assert ends.ask("version_at", first_time - 1) == oldest
    assert ends.ask("version_at", first_time) == oldest + 1


# ---------------------------------------------------------------------- watch


def test_watch_is_answered_in_its_place_and_once(ends: "Ends") -> None:
    replies = ends.batch(["set", {"a": b"1"}], ["watch", ""], ["get", "a"], ["watch", ""])
    assert replies[:3] == [1, True, b"1"]
    assert replies[3]["error"] == "bad_request"
    assert len(ends.commands.feeds) == 1
    ends.disconnect()
    assert len(ends.commands.feeds) == 0


@pytest.mark.parametrize("most", [0, 1, 2])
def test_the_watches_of_a_user_are_limited(make_ends: MakeEnds, most: int) -> None:
    first = make_ends(Limits(max_watches_per_uid=most), uid=65_533)
    watching = [first.another(uid=65_533) for _ in range(most)]
    assert [one.ask("watch", "a", 0) for one in watching] == [True] * most
    refused = first.ask("watch", "")
    assert (refused["error"], str(most) in refused["message"]) == ("busy", True)
    assert first.ask("ping") is True, "the connection goes on"
    assert first.another(uid=65_532).code("watch", "") == ("busy" if most == 0 else "")
    assert first.another(uid=0).ask("watch", "") is True, "administrators are not counted"
    if most:
        watching[0].disconnect()
        assert first.ask("watch", "") is True


@pytest.mark.parametrize("kind", ["get_many", "fetch"])
def test_reads_of_the_past_do_not_run_together_in_one_turn_of_the_loop(make_ends: MakeEnds, kind: str) -> None:
    """Each may have to pass over a million versions."""
    ends = make_ends()
    version = ends.ask("set", {"a": b"1"})

    def run(*requests: list[object]) -> object:
        payload = msgspec.msgpack.encode(requests)
        return ends.commands.run(decode_batch(payload), ends.peer, len(payload))

    assert run([kind, ["a"], version], [kind, ["a"], version]) is None
    assert run([kind, ["a"]], [kind, ["a"]]) is not None
    assert run(["begin"], [kind, ["a"], -1]) is not None
    one, other = ends.batch([kind, ["a"], version], [kind, ["a"], version])
    assert one == other


@pytest.mark.parametrize("name", ["expired", "evicted", "restarted"])
@pytest.mark.parametrize("shown", ["token", "certificate"])
def test_nobodys_commits_seem_to_be_the_servers_own(ends: "Ends", name: str, shown: str) -> None:
    one = ends.another(uid=None)
    one.peer.authenticate_as(Identity(**{shown: name}))
    one.ask("set", {"a": b""})
    assert ends.ask("history", "a", 1)[0][3] == [None, None, f"another ({name})"]


def test_over_tcp_users_are_who_they_have_shown_to_be(make_ends: MakeEnds) -> None:
    ends = make_ends(Limits(max_watches_per_uid=1))

    def somebody(**who: str) -> "Ends":
        one = ends.another(uid=None)
        one.peer.authenticate_as(Identity(**who))
        return one

    for who in ({"token": "ann"}, {"token": "bob"}, {"certificate": "ann"}, {}):
        assert somebody(**who).ask("watch", "") is True
        assert somebody(**who).code("watch", "") == "busy"


def test_a_prefix_is_no_longer_than_a_key(make_ends: MakeEnds) -> None:
    for prefix, code in (("", ""), ("12345", ""), ("é" * 2, ""), ("123456", "too_large"), ("é" * 3, "too_large")):
        assert make_ends(Limits(max_key_bytes=5)).code("watch", prefix) == code
