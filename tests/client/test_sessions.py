"""Transactions, snapshots, pipelines and history, with both clients: one set of claims."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

import kv

if TYPE_CHECKING:
    from tests.harness.daemon import Daemon

Connect = Callable[..., kv.Client]
MISSING = 1 << 40


@pytest.fixture
def other(open_client: Connect, shared_daemon: "Daemon") -> kv.Client:
    """Another client of the same daemon."""
    return open_client(shared_daemon.address)


# ---------------------------------------------------------------------- single requests


def test_fetch_returns_versions_and_absence(either: kv.Client) -> None:
    version = either.set("a", b"1")
    assert either.fetch(["a", "no"]) == {"a": kv.Versioned(b"1", version), "no": kv.Versioned(None, 0)}
    either.set("a", b"2")
    assert either.fetch(["a"], at=version)["a"].value == b"1"


def test_compare_and_set_writes_only_on_the_version_seen(either: kv.Client) -> None:
    first = either.compare_and_set("a", b"1", 0)
    second = either.compare_and_set("a", b"2", first)
    with pytest.raises(kv.Conflict) as refused:
        either.compare_and_set("a", b"3", first)
    (entry,) = refused.value.conflicts
    assert (entry.key, entry.expected, entry.found) == ("a", first, second)
    assert entry.time is not None
    assert entry.author is not None
    assert entry.author.uid is not None
    assert (refused.value.retryable, refused.value.maybe_committed) == (False, False)
    either.compare_and_set("a", None, second)
    assert either.get("a") is None


def test_increment_counts_and_refuses_a_value_that_is_not_a_number(either: kv.Client) -> None:
    assert [either.increment("n"), either.increment("n", 5), either.increment("n", -10)] == [1, 6, -4]
    either.set("n", b"cake")
    with pytest.raises(kv.NotANumber):
        either.increment("n")
    assert either.get("n") == b"cake"


def test_ttl_returns_seconds(either: kv.Client) -> None:
    either.set("a", b"", ttl=100)
    either.set_many({"b": b"", "c": b""}, ttl=timedelta(minutes=5))
    either.set("d", b"")
    a, b, d, no = either.ttl("a", "b", "d", "no")
    assert a is not None
    assert 90 < a <= 100
    assert b is not None
    assert 290 < b <= 300
    assert (d, no) == (float("inf"), None)
    either.set("a", b"2", keep_ttl=True)
    assert (either.ttl("a")[0] or 0) <= 100
    assert either.touch("a", "d", "no", ttl=None) == [True, True, False]
    assert either.ttl("a") == [float("inf")]


def test_get_and_touch_prolongs_the_keys_that_it_reads(either: kv.Client, other: kv.Client) -> None:
    either.set_many({"a": b"1", "b": b"2"}, ttl=50)
    either.set("c", b"3")
    before = either.version()
    assert either.get_and_touch("a", "no", "c", "a", ttl=timedelta(hours=1)) == {"a": b"1", "no": None, "c": b"3"}
    left = dict(zip("abc", other.ttl("a", "b", "c"), strict=True))
    assert [(left[key] or 0) > 3000 for key in "abc"] == [True, False, True]
    assert left["c"] != float("inf")
    assert [commit.keys for commit in other.log(since=before)] == [["a", "c"]], "one commit"
    assert either.get_and_touch("a", ttl=None) == {"a": b"1"}
    assert other.ttl("a", "no") == [float("inf"), None]
    with pytest.raises(kv.KvdError):
        either.get_and_touch("a", "", ttl=1)
    assert other.ttl("a") == [float("inf")], "all or nothing"


def test_ephemeral_keys_are_deleted_with_their_connection(either: kv.Client, other: kv.Client) -> None:
    with other.watch("e") as watch:
        either.set("e", b"1", ephemeral=True)
        assert next(iter(watch)).writes == {"e": b"1"}
        either.close()
        assert next(iter(watch)).writes == {"e": None}


def test_a_commit_validates_its_reads(either: kv.Client) -> None:
    version = either.set("a", b"1")
    version_of_commit = either.commit({"b": b"2", "a": None}, reads={"a": version, "no": 0})
    assert either.get_many(["a", "b"]) == {"a": None, "b": b"2"}
    with pytest.raises(kv.Conflict):
        either.commit({"b": b"3"}, ranges=[("", None)], snapshot=version)
    assert either.version() == version_of_commit


# ---------------------------------------------------------------------- snapshots


def test_a_snapshot_stays_as_it_was(either: kv.Client, other: kv.Client) -> None:
    version = either.set_many({"a": b"1", "b": b"1"})
    with either.snapshot() as snapshot:
        other.set("a", b"2")
        other.delete("b")
        other.set("c", b"2")
        assert snapshot.version == version
        assert snapshot.get("a") == b"1"
        assert snapshot.get_many(["b", "c"]) == {"b": b"1", "c": None}
        assert snapshot.fetch(["a"]) == {"a": kv.Versioned(b"1", version)}
        assert [item.key for item in snapshot.scan()] == ["a", "b"]
    assert either.get("a") == b"2"
    assert [item.key for item in either.at(version).scan()] == ["a", "b"]
    assert either.at(version).get("a") == b"1"


def test_a_snapshot_that_has_not_begun_is_a_runtime_error(either: kv.Client) -> None:
    with pytest.raises(RuntimeError, match="has not begun"):
        either.snapshot().get("a")


# ---------------------------------------------------------------------- transactions


def test_a_transaction_sees_its_own_writes_and_no_other_client_does(either: kv.Client, other: kv.Client) -> None:
    either.set_many({"a": b"1", "b": b"1"})
    with either.transaction() as txn:
        assert txn.get("a") == b"1"
        txn.set("c", b"own")
        txn.delete("b")
        assert txn.get_many(["a", "b", "c", "d"]) == {"a": b"1", "b": None, "c": b"own", "d": None}
        assert txn.get("no", b"default") == b"default"
        assert other.get("c") is None
        txn.set("a", b"2")
        assert txn.get("a") == b"2"
    assert either.get_many(["a", "b", "c"]) == {"a": b"2", "b": None, "c": b"own"}
    assert txn.version is not None
    assert txn.snapshot is not None
    assert either.fetch(["a"])["a"].version == txn.version > txn.snapshot


def test_a_transaction_reads_the_version_at_which_it_began(either: kv.Client, other: kv.Client) -> None:
    either.set_many({"a": b"1", "b": b"1"})
    with either.transaction() as txn:
        assert txn.get("a") == b"1"
        other.set_many({"a": b"2", "b": b"2", "c": b"2"})
        assert txn.get_many(["a", "b", "c"]) == {"a": b"1", "b": b"1", "c": None}
        assert [item.key for item in txn.scan()] == ["a", "b"]


def test_a_transaction_conflicts_when_a_key_that_it_read_has_changed(either: kv.Client, other: kv.Client) -> None:
    either.set("a", b"1")
    with pytest.raises(kv.Conflict, match="'a'"), either.transaction() as txn:  # noqa: PT012  # its end raises
        txn.set("b", txn.get("a") or b"")
        other.set("a", b"2")
    assert either.get("b") is None
    with pytest.raises(kv.Conflict), either.transaction() as txn:  # noqa: PT012  # its end raises
        assert txn.get("no") is None
        txn.set("b", b"1")
        other.set("no", b"there")


def test_a_transaction_conflicts_with_a_phantom_in_a_scanned_range(either: kv.Client, other: kv.Client) -> None:
    either.set("p:1", b"")
    with pytest.raises(kv.Conflict), either.transaction() as txn:  # noqa: PT012  # its end raises
        assert len(list(txn.scan("p:"))) == 1
        txn.set("count", b"1")
        other.set("p:2", b"")
    with either.transaction() as txn:  # the change is outside the scanned range
        list(txn.scan("p:", limit=1))
        txn.set("count", b"1")
        other.set("q", b"")
    assert either.get("count") == b"1"


def test_a_scan_in_a_transaction_shows_its_own_writes_in_order(either: kv.Client) -> None:
    either.set_many({f"{number:04}": b"old" for number in range(0, 3_000, 2)})
    with either.transaction() as txn:
        txn.set("0001", b"own")
        txn.set("0002", b"own")
        txn.delete("0004")
        txn.set("9", b"own")
        seen = list(txn.scan())
        assert [item.key for item in seen] == sorted(item.key for item in seen)
        assert len(seen) == 1_501
        assert [(item.key, item.value) for item in seen[:4]] == [
            ("0000", b"old"), ("0001", b"own"), ("0002", b"own"), ("0006", b"old"),
        ]  # fmt: skip
        assert [item.key for item in txn.scan(limit=3)] == ["0000", "0001", "0002"]
        assert [item.key for item in txn.scan("0001")] == ["0001"]
        assert [item.value for item in txn.scan(start="0001", end="0003", keys_only=True)] == [None, None]


def test_transactions_of_only_writes_or_only_reads_never_conflict(either: kv.Client, other: kv.Client) -> None:
    either.set("a", b"1")
    with either.transaction() as txn:
        txn.set("a", b"2")
        other.set("a", b"3")
    assert either.get("a") == b"2"
    with either.transaction() as txn:
        txn.get("a")
        other.set("a", b"4")
        assert txn.get("a") == b"2"
    assert txn.version is None


def test_an_exception_in_the_block_means_no_commit(either: kv.Client) -> None:
    with pytest.raises(ZeroDivisionError), either.transaction() as txn:  # noqa: PT012  # its end raises
        txn.get("a")
        txn.set("a", b"1")
        raise ZeroDivisionError
    assert either.get("a") is None
    with pytest.raises(RuntimeError, match="over"):
        txn.set("a", b"1")
    with pytest.raises(RuntimeError, match="over"):
        txn.get("a")


def test_run_tries_again_until_there_is_no_conflict(either: kv.Client, other: kv.Client) -> None:
    either.set("n", b"0")
    calls = []

    def bump(txn: Any) -> str:  # noqa: ANN401
        number = int(txn.get("n"))
        if len(calls) < 3:
            other.increment("n")
        calls.append(number)
        txn.set("n", str(number + 1).encode())
        return f"was {number}"

    assert either.run(bump) == "was 3"
    assert (calls, either.get("n")) == ([0, 1, 2, 3], b"4")


def test_run_gives_up_with_the_last_conflict(either: kv.Client, other: kv.Client) -> None:
    calls = []

    def unlucky(txn: Any) -> None:  # noqa: ANN401
        calls.append(txn.get("n"))
        other.increment("n")
        txn.set("m", b"")

    with pytest.raises(kv.Conflict):
        either.run(unlucky, attempts=3)
    assert calls == [None, b"1", b"2"]
    with pytest.raises(ZeroDivisionError):
        either.run(lambda txn: 1 // 0)


def test_concurrent_transactions_lose_no_increment(open_client: Connect, shared_daemon: "Daemon") -> None:
    db = open_client(shared_daemon.address)
    db.set("shared", b"0")

    def bump(txn: Any) -> None:  # noqa: ANN401
        txn.set("shared", str(int(txn.get("shared")) + 1).encode())

    def work() -> None:
        client = open_client(shared_daemon.address)
        for _ in range(20):
            client.run(bump, attempts=1_000)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert db.get("shared") == b"80"


# ---------------------------------------------------------------------- pipelines


def test_a_pipeline_has_its_results_at_the_end(either: kv.Client) -> None:
    with either.pipeline() as pipeline:
        before, written, after = pipeline.get("a"), pipeline.set("a", b"1"), pipeline.get("a")
        failed = pipeline.increment("a", 2**62)
        with pytest.raises(RuntimeError, match="ended"):
            before.result()
    assert (before.result(), after.result()) == (None, b"1")
    assert written.result() > 0
    assert failed.result() == 2**62 + 1
    with pytest.raises(RuntimeError, match="begin another"):
        pipeline.get("a")


def test_a_call_that_fails_in_a_pipeline_fails_alone(either: kv.Client) -> None:
    with either.pipeline() as pipeline:
        gone, fine = pipeline.delete("no"), pipeline.set("a", b"1")
    with pytest.raises(kv.NotFound):
        gone.result()
    assert fine.result() > 0


def test_a_pipeline_left_by_an_exception_sends_nothing(either: kv.Client) -> None:
    with pytest.raises(ZeroDivisionError), either.pipeline() as pipeline:  # noqa: PT012  # its end raises
        pipeline.set("a", b"1")
        raise ZeroDivisionError
    assert either.get("a") is None


# ---------------------------------------------------------------------- history


def test_history_and_log_have_versions_times_and_authors(either: kv.Client) -> None:
    start = either.version()
    versions = [either.set("a", b"1"), either.set_many({"a": b"2", "b": b"2"})]
    either.delete("a")
    newest = either.version()
    history = list(either.history("a"))[:3]
    assert [(entry.version, entry.value) for entry in history] == [
        (newest, None), (versions[1], b"2"), (versions[0], b"1"),
    ]  # fmt: skip
    assert all(entry.author is not None and entry.author.pid for entry in history)
    assert [entry.version for entry in either.history("a", limit=2)] == [newest, versions[1]]
    log = list(either.log(since=start))
    assert [(commit.version, sorted(commit.keys)) for commit in log] == [
        (versions[0], ["a"]), (versions[1], ["a", "b"]), (newest, ["a"]),
    ]  # fmt: skip
    assert [commit.version for commit in either.log(limit=2)] == [versions[1], newest]
    assert [commit.version for commit in either.log(since=start, limit=1)] == [versions[0]]
    assert list(either.log(since=newest)) == []
    everything = [commit.version for commit in either.log()]
    assert everything[-3:] == [*versions, newest]
    time = log[1].time
    assert time is not None
    assert either.version_at(time) >= versions[1]


def test_long_histories_are_read_page_by_page(either: kv.Client) -> None:
    start = either.version()
    with either.pipeline() as pipeline:
        for number in range(2_500):
            pipeline.set("a", str(number).encode())
    assert [int(entry.value or b"") for entry in either.history("a", limit=2_400)] == list(range(2_499, 99, -1))
    assert len(list(either.log(since=start))) == 2_500
    assert len(list(either.log(limit=2_400))) == 2_400


def test_rollback_restores_keys(either: kv.Client) -> None:
    version = either.set_many({"a": b"1", "b": b"1"})
    either.set("a", b"2")
    either.delete("b")
    either.set("c", b"2")
    assert either.plan_rollback("a", "b", "c", to=version) == {"a": b"1", "b": b"1", "c": None}
    new_version = either.rollback("a", "b", "c", to=version)
    assert either.get_many(["a", "b", "c"]) == {"a": b"1", "b": b"1", "c": None}
    assert [commit.version for commit in either.log(limit=1)] == [new_version]


def test_revert_undoes_one_commit(either: kv.Client) -> None:
    either.set("a", b"1")
    version = either.set_many({"a": b"2", "b": b"2"})
    either.set("c", b"3")
    assert either.plan_revert(version) == {"a": b"1", "b": None}
    either.revert(version)
    assert either.get_many(["a", "b", "c"]) == {"a": b"1", "b": None, "c": b"3"}


def test_revert_conflicts_if_a_key_has_changed_since(either: kv.Client) -> None:
    either.set("a", b"1")
    version = either.set_many({"a": b"2", "b": b"2"})
    changed = either.set("b", b"3")
    with pytest.raises(kv.Conflict) as refused:
        either.revert(version)
    assert [(entry.key, entry.expected, entry.found) for entry in refused.value.conflicts] == [("b", version, changed)]
    assert either.get("a") == b"2"
    with pytest.raises((kv.SnapshotGone, kv.Refused)):
        either.revert(MISSING)


def test_revert_conflicts_if_a_deleted_key_was_set_and_deleted_again(either: kv.Client) -> None:
    either.set("a", b"1")
    either.delete("a")
    version = either.version()
    either.set("a", b"2")
    either.delete("a")
    with pytest.raises(kv.Conflict):
        either.revert(version)
    assert either.get("a") is None


# ---------------------------------------------------------------------- slow frames, and large and hot keys


def test_largest_keys_are_the_largest_of_all_pages(either: kv.Client) -> None:
    either.set_many({f"small/{number:05}": b"" for number in range(10_000)})
    either.set_many({"a": b"4444", "small/05000": b"333", "z": b"22"})
    assert either.largest_keys(limit=3) == {"a": 4, "small/05000": 3, "z": 2}
    assert list(either.largest_keys(limit=2)) == ["a", "small/05000"]


def test_hottest_keys_and_the_slow_log_can_be_read(either: kv.Client) -> None:
    for _ in range(1_000):
        either.set("hot", b"")
    hottest = either.hottest_keys("writes", limit=1)
    assert hottest.seconds >= 0
    assert hottest.operations.get("hot", 0) % 61 == 0
    assert len(either.slow_log(limit=3)) <= 3
    assert either.slow_log(reset=True) is not None
    with pytest.raises(kv.Refused):
        either.hottest_keys("age")
