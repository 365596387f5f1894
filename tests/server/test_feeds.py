"""The events of a watch, applied to a dict, give the store at every version that they name. None is lost or repeated.

The watcher here knows only its events. A plain model beside it has every commit and the dict after it.
"""

import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvd.engine import feeds as feeds_module
from kvd.engine.database import Database
from kvd.engine.errors import EngineError
from kvd.engine.feeds import BATCH_BYTES, BATCH_KEYS, BOOKMARK_VERSIONS, Feed, Feeds
from kvd.requests.peer import Peer
from kvd.store.authors import Author
from kvd.store.heads import FORGOTTEN
from kvd.store.prefixes import PrefixRule, PrefixRules
from kvd.store.store import Store
from kvd.store.window import WindowLimits
from tests.harness.in_memory import build_database

State = dict[str, bytes]
ANA, BEN = Author(1, 10, "ana"), Author(2, 20, "ben")


class Recorded:
    """A store, and a model of its past: each commit with its changes, and the state after it."""

    def __init__(self, **limits: int) -> None:
        self.store = Store(WindowLimits(**limits))
        self.visible = 0
        self.commits: dict[int, tuple[int, Author, dict[str, bytes | None]]] = {}
        self.states: dict[int, State] = {0: {}}

    def write(self, changes: dict[str, bytes | None], author: Author = ANA) -> int:
        """Make one commit. Deletions of absent keys do nothing."""
        self._advance(1)
        before, state = self.store.version, self.states[self.store.version]
        real = {key: value for key, value in changes.items() if value is not None or key in state}
        version = self.store.write(changes, author)
        if version > before:
            self._note(version, real, author)
        return version

    def set_each(self, batch: list[dict[str, bytes]], author: Author = ANA) -> None:
        """Make a commit for each set, as one group where the store does so."""
        self._advance(1)
        for version, entries in zip(self.store.set_each(batch, author), batch, strict=True):
            if entries:
                self._note(version, dict(entries), author)

    def write_other(self, count: int) -> None:
        """Make ``count`` commits of the key "other" alone."""
        for _ in range(count):
            self.write({"other": b""})

    def prune(self) -> None:
        """Drop all history that may be dropped."""
        self.store.drop_history(10**6)

    def drop_unpinned_history(self) -> None:
        """Drop all history that is not pinned."""
        self.store.window.limits = WindowLimits(max_commits=0, max_pinned_bytes=10**9)
        self.prune()

    def show(self) -> None:
        """Make every commit visible."""
        self.visible = self.store.version

    def keep_short(self, prefix: str) -> None:
        """Forget superseded values below ``prefix`` after a millisecond."""
        self.store.retention.set_rules(PrefixRules([PrefixRule(prefix=prefix, history_ms=1)]))

    def grow_old(self) -> None:
        """Let more than a millisecond pass, and prune."""
        self._advance(1_001)
        self.prune()

    def is_forgotten(self, prefix: str, at: int) -> bool:
        """Whether a value below ``prefix`` that a watcher at version ``at`` has not received is forgotten."""
        groups = self.store.window.since(at)
        heads = [head for group in groups for head in group.heads if head.version > at and head.key.startswith(prefix)]
        return any(head.value is FORGOTTEN for head in heads)

    def _advance(self, us: int) -> None:
        self.store.advance(self.store.time + us)

    def _note(self, version: int, changes: dict[str, bytes | None], author: Author) -> None:
        state = {**self.states[max(self.states)], **changes}
        self.states[version] = {key: value for key, value in state.items() if value is not None}
        self.commits[version] = self.store.time, author, changes


class Watcher:
    """A watcher that checks each event against the model."""

    def __init__(self, recorded: Recorded, prefix: str = "", from_version: int | None = None) -> None:
        self.recorded, self.prefix = recorded, prefix
        self.feed = Feed(recorded.store, prefix, from_version, lambda: recorded.visible)
        start = recorded.store.version if from_version is None else from_version
        self.at = start if start in recorded.states else -1  # the watcher's version; -1: not a version of this store
        self.state = self._expected(self.at) if self.at >= 0 else {}
        self.resynchronising = False
        self.events: list[tuple[Any, ...]] = []

    def read(self) -> list[str]:
        """Read one batch. Return the kinds of its events."""
        batch: list[tuple[Any, ...]] = self.feed.next_events()  # type: ignore[assignment]
        for event in batch:
            getattr(self, "_" + event[0])(*event[1:])
        self.events += batch
        return [event[0] for event in batch]

    def read_all(self) -> list[str]:
        """Read until the feed is drained. Return the kinds of the events."""
        kinds: list[str] = []
        for _ in range(10_000):
            if self.feed.is_drained:
                assert self.feed.next_events() == []
                return kinds
            kinds += self.read()
        raise AssertionError("the watcher never catches up")

    def is_right(self) -> bool:
        """Whether the watcher has the state that may be shown now."""
        return self.state == self._expected(self.recorded.visible)

    def _change(self, version: int, time: int, author: Author, changes: dict[str, bytes | None]) -> None:
        assert not self.resynchronising
        assert self._commits_until(version) == [version], "no commit is left out or sent twice"
        expected_time, expected_author, all_changes = self.recorded.commits[version]
        assert changes == {key: value for key, value in all_changes.items() if key.startswith(self.prefix)}
        assert (time, author) == (expected_time, expected_author)
        for key, value in changes.items():
            if value is None:
                del self.state[key]
            else:
                self.state[key] = value
        self._is_at(version)

    def _live(self, version: int) -> None:
        if not self.resynchronising:
            assert self._commits_until(version) == []
        self.resynchronising = False
        self._is_at(version)

    def _reset(self, version: int) -> None:
        oldest = self.recorded.store.window.oldest_readable
        assert self.at < oldest or self.recorded.is_forgotten(self.prefix, self.at), "a reset has a reason"
        self.state, self.resynchronising, self.at = {}, True, version
        assert version <= self.recorded.visible

    def _item(self, key: str, value: bytes, version: int) -> None:
        assert self.resynchronising
        assert key.startswith(self.prefix)
        assert key not in self.state
        assert version <= self.at
        self.state[key] = value

    def _is_at(self, version: int) -> None:
        assert self.at <= version <= self.recorded.visible
        assert self.state == self._expected(version)
        self.at = version

    def _expected(self, version: int) -> State:
        state = self.recorded.states[version]
        return {key: value for key, value in state.items() if key.startswith(self.prefix)}

    def _commits_until(self, version: int) -> list[int]:
        """The commits after the watcher's version, up to ``version``, that have keys below its prefix."""
        later = [v for v in self.recorded.commits if self.at < v <= version]
        return [v for v in later if any(key.startswith(self.prefix) for key in self.recorded.commits[v][2])]


@pytest.fixture
def recorded() -> Recorded:
    """A store with four commits. Two of them have keys below a/."""
    one = Recorded()
    one.write({"a/1": b"x", "b/1": b"y"})
    one.write({"b/2": b"z"}, BEN)
    one.write({"a/1": None, "a/2": b"", "b/1": None}, BEN)
    one.write_other(1)
    one.show()
    return one


def test_a_watch_from_now_on_begins_with_live_and_goes_on_with_changes(recorded: Recorded) -> None:
    watcher = Watcher(recorded, "a/")
    assert watcher.read_all() == ["live"]
    assert watcher.events == [("live", 4)]
    recorded.write({"a/1": b"again", "c": b""}, BEN)
    recorded.show()
    assert watcher.read_all() == ["change"]
    assert watcher.events[1:] == [("change", 5, 5, BEN, {"a/1": b"again"})]


def test_a_watch_from_a_version_sends_all_later_changes_below_its_prefix(recorded: Recorded) -> None:
    for from_version, expected in ((0, [1, 3]), (1, [3]), (2, [3]), (3, []), (4, [])):
        watcher = Watcher(recorded, "a/", from_version)
        assert watcher.read_all() == ["change"] * len(expected) + ["live"]
        assert [event[1] for event in watcher.events] == [*expected, 4]


def test_a_watch_without_a_prefix_sends_all_changes(recorded: Recorded) -> None:
    assert Watcher(recorded, "", 0).read_all() == ["change"] * 4 + ["live"]


@pytest.mark.parametrize("from_version", [5, 2**64 - 1, -1, -(2**63)])
def test_a_watch_from_a_version_of_another_store_begins_with_a_reset(recorded: Recorded, from_version: int) -> None:
    watcher = Watcher(recorded, "a/", from_version)
    assert watcher.read_all() == ["reset", "item", "live"]
    assert watcher.events == [("reset", 4), ("item", "a/2", b"", 3), ("live", 4)]


def test_a_watch_from_a_pruned_version_begins_with_a_reset_and_from_the_next_it_does_not(recorded: Recorded) -> None:
    recorded.store.window.limits = WindowLimits(max_commits=2)
    recorded.prune()
    assert recorded.store.window.oldest_readable == 2
    assert Watcher(recorded, "", 1).read_all() == ["reset", "item", "item", "item", "live"]
    assert Watcher(recorded, "", 2).read_all() == ["change", "change", "live"]


def test_an_empty_prefix_of_an_empty_store_is_resynchronised_too() -> None:
    assert Watcher(Recorded(), "", 1).read_all() == ["reset", "live"]


def test_a_slow_watcher_is_resynchronised_with_all_changes_since(recorded: Recorded) -> None:
    watcher = Watcher(recorded, "a/")
    watcher.read_all()
    for number in range(5):
        recorded.write({f"a/{number}": b"new"})
    recorded.drop_unpinned_history()
    recorded.write({"a/late": b"late"})
    recorded.show()
    assert watcher.read_all() == ["reset", *["item"] * 6, "live"]
    recorded.write({"a/0": b"later"})
    recorded.show()
    assert watcher.read_all() == ["change"]
    assert watcher.is_right()


def test_a_forgotten_value_resynchronises_the_watchers_that_have_not_received_it(recorded: Recorded) -> None:
    recorded.keep_short("a/")
    ahead, late, other = Watcher(recorded, "a/", 4), Watcher(recorded, "a/", 4), Watcher(recorded, "b/", 4)
    for number in range(3):
        recorded.write({"a/2": b"%d" % number, "b/2": b"%d" % number})
    recorded.show()
    assert ahead.read_all() == ["change"] * 3 + ["live"]
    recorded.grow_old()
    assert recorded.is_forgotten("a/", 4)
    assert ahead.read_all() == []
    assert late.read_all() == ["reset", "item", "live"]
    assert other.read_all() == ["change"] * 3 + ["live"]
    assert Watcher(recorded, "a/", 6).read_all() == ["change", "live"]


def test_known_changes_are_sent_before_the_reset_for_a_forgotten_one(recorded: Recorded) -> None:
    recorded.keep_short("a/")
    recorded.write({"a/new": b"stays"})
    recorded.write({"a/2": b"goes"})
    recorded.write({"a/2": b"newest"})
    recorded.show()
    recorded.grow_old()
    assert Watcher(recorded, "", 4).read_all() == ["change", "reset", *["item"] * 4, "live"]


def test_a_long_resynchronisation_comes_in_batches_from_one_version(recorded: Recorded) -> None:
    recorded.write({f"a/{number:05}": b"x" * 100 for number in range(3_000)})
    recorded.show()
    watcher = Watcher(recorded, "a/", -1)
    batches = [watcher.read()]
    while watcher.resynchronising:
        recorded.write({"a/00000": None, "a/02999": b"changed", "a/new": b""})
        recorded.show()
        batches.append(watcher.read())
    assert len(batches) > 3
    assert all(len(batch) * 100 <= BATCH_BYTES + 200 for batch in batches)
    watcher.read_all()
    assert watcher.is_right()


def test_a_resynchronisation_that_loses_its_snapshot_starts_again(recorded: Recorded) -> None:
    recorded.store.window.limits = WindowLimits(max_bytes=0, max_pinned_bytes=0)
    recorded.write({f"a/{number:05}": b"x" * 100 for number in range(1_500)})
    recorded.show()
    watcher = Watcher(recorded, "a/", -1)
    assert watcher.read()[0] == "reset"
    recorded.write({"a/00000": None})
    recorded.prune()
    recorded.show()
    kinds = watcher.read_all()
    assert kinds[0] == "reset"
    assert kinds.count("reset") == 1
    assert watcher.is_right()


def test_commits_that_may_not_be_shown_yet_are_not_sent(recorded: Recorded) -> None:
    watcher = Watcher(recorded, "", 0)
    recorded.visible = 2
    assert watcher.read_all() == ["change", "change", "live"]
    assert watcher.at == 2
    from_now = Watcher(recorded)
    resynchronised = Watcher(recorded, "", -1)
    assert (from_now.read_all(), resynchronised.read()) == ([], [])
    recorded.show()
    assert watcher.read_all() == ["change", "change"]
    assert from_now.read_all() == ["live"]
    assert resynchronised.read_all() == ["reset", *["item"] * 3, "live"]


def test_a_watch_from_a_gap_between_versions_is_drained_despite_an_invisible_commit() -> None:
    """Versions have gaps after a restart."""
    store = Store()
    store.begin_history(10, 0)
    store.version = 20
    feed = Feed(store, "", 15, lambda: 20)
    store.set({"a": b""})
    assert feed.next_events() == [("live", 20)]
    assert feed.is_drained


def test_a_watcher_gets_the_version_regularly_while_commits_have_other_keys_only(recorded: Recorded) -> None:
    watcher = Watcher(recorded, "a/")
    watcher.read_all()
    for commits, expected in ((BOOKMARK_VERSIONS - 1, []), (1, ["live"]), (BOOKMARK_VERSIONS - 1, []), (1, ["live"])):
        recorded.write_other(commits)
        recorded.show()
        assert watcher.read_all() == expected


def test_the_keys_and_bytes_of_one_batch_are_limited(recorded: Recorded) -> None:
    other = Watcher(recorded, "a/")
    other.read()
    recorded.write_other(3 * BATCH_KEYS)
    recorded.show()
    watcher = Watcher(recorded, "", 4)
    assert len(watcher.read()) * feeds_module._EVENT_BYTES <= BATCH_BYTES + 100
    batches = 0
    while not other.feed.is_drained:
        other.read()
        batches += 1
    assert batches == 3


def test_a_commit_is_never_split(recorded: Recorded) -> None:
    big = {f"{number:06}": b"x" * 50 for number in range(2 * BATCH_KEYS)}
    recorded.write({"before": b""})
    recorded.write(dict(big))
    recorded.show()
    watcher = Watcher(recorded, "", 4)
    assert watcher.read() == ["change", "change", "live"]
    assert len(watcher.events[1][4]) == len(big)


def test_commits_of_one_group_are_sent_one_by_one_from_any_of_them(recorded: Recorded) -> None:
    recorded.write({"a": b"", "b": b"", "c": b""})
    recorded.set_each([{"a": b"1"}, {"b": b"2"}, {"c": b"3"}])
    recorded.show()
    assert recorded.store.window.groups[-1].commits == 3, "the three commits are one group"
    for from_version, count in ((5, 3), (6, 2), (7, 1), (8, 0)):
        assert Watcher(recorded, "", from_version).read_all() == ["change"] * count + ["live"]


def test_a_watcher_that_leaves_during_a_resynchronisation_releases_its_snapshot(recorded: Recorded) -> None:
    recorded.write({f"a/{number:05}": b"x" * 100 for number in range(1_500)})
    recorded.show()
    watcher = Watcher(recorded, "a/", -1)
    watcher.read()
    recorded.write_other(1)
    recorded.drop_unpinned_history()
    assert recorded.store.window.oldest_readable < recorded.store.version, "the resynchronisation pins its snapshot"
    watcher.feed.close()
    watcher.feed.close()
    recorded.drop_unpinned_history()
    assert recorded.store.window.oldest_readable == recorded.store.version


# ---------------------------------------------------------------------- random histories

KEYS = ["a", "b", "ba", "bb", "b\U0001f382", "c", "\uffff"]
keys = st.sampled_from(KEYS)
values = st.binary(max_size=6)


def one_by_one(entries: dict[str, bytes]) -> list[dict[str, bytes]]:
    """One set a key. If the keys exist, the store makes them one group of commits."""
    return [{key: value} for key, value in entries.items()]


steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.dictionaries(keys, st.none() | values, max_size=4)),
        st.tuples(st.just("set each"), st.lists(st.dictionaries(keys, values, max_size=2), max_size=5)),
        st.tuples(st.just("set each"), st.dictionaries(keys, values, min_size=2).map(one_by_one)),
        st.tuples(st.just("prune"), st.none()),
        st.tuples(st.just("keep short"), st.sampled_from(["b", "ba"])),
        st.tuples(st.just("grow old"), st.none()),
        st.tuples(st.just("show"), st.integers(0, 3)),
        st.tuples(st.just("open"), st.tuples(st.sampled_from(["", "b", "ba", "z"]), st.none() | st.integers(-1, 40))),
        st.tuples(st.just("close"), st.integers(0, 3)),
        st.tuples(st.just("read"), st.integers(0, 3)),
        st.tuples(st.just("read"), st.integers(0, 3)),
    ),
    max_size=60,
)
limits = st.fixed_dictionaries(
    {"max_commits": st.integers(0, 12), "max_pinned_bytes": st.sampled_from([0, 500, 2_000, 10**6])}
)


def small_batches(patch: pytest.MonkeyPatch) -> None:
    """Lower the limits of a batch, so that short histories reach the same cases as long ones."""
    for name, value in (("BATCH_KEYS", 2), ("BATCH_BYTES", 100), ("BOOKMARK_VERSIONS", 3)):
        patch.setattr(feeds_module, name, value)


@settings(max_examples=400)
@given(sequence=steps, window=limits)
def test_a_watcher_has_the_store_after_any_history(sequence: list[tuple[str, Any]], window: dict[str, int]) -> None:
    recorded = Recorded(**window)
    watchers: list[Watcher] = []

    def read(number: int) -> None:
        for watcher in watchers[number::4]:
            watcher.read()

    def close(number: int) -> None:
        for watcher in watchers[number::4]:
            watcher.feed.close()
            watchers.remove(watcher)

    def show(hidden: int) -> None:
        recorded.visible = max(recorded.visible, recorded.store.version - hidden)

    actions: dict[str, Callable[[Any], object]] = {
        "write": recorded.write,
        "set each": recorded.set_each,
        "prune": lambda _: recorded.prune(),
        "keep short": recorded.keep_short,
        "grow old": lambda _: recorded.grow_old(),
        "show": show,
        "open": lambda start: watchers.append(Watcher(recorded, *start)),
        "close": close,
        "read": read,
    }
    with pytest.MonkeyPatch.context() as patch:
        small_batches(patch)
        recorded.write(dict.fromkeys(KEYS, b""))
        for step, argument in sequence:
            actions[step](argument)
        recorded.show()
        for watcher in watchers:
            watcher.read_all()
            assert watcher.is_right()
            watcher.feed.close()
    recorded.drop_unpinned_history()
    assert recorded.store.window.oldest_readable == recorded.store.version, "no version is pinned any more"


# ---------------------------------------------------------------------- all feeds together


@pytest.fixture
def database() -> Database:
    return build_database()


def test_commits_wake_the_feeds_that_there_are(database: Database) -> None:
    feeds, peer, woken = Feeds(database), Peer("test", 0), []
    database.set({"a": b""}, ANA)
    assert not database.wakeups.wakers, "without a feed, a commit wakes none"
    feed = feeds.open(peer, 0, "", None, 1)
    database.set({"a": b""}, ANA)
    feeds.subscribe(feed, lambda: woken.append(database.store.version))
    database.set({"a": b""}, ANA)
    database.set_each([{"a": b""}] * 3, ANA)
    assert woken == [3, 6]
    feeds.close(peer)
    feeds.close(peer)
    assert (database.wakeups.wakers, len(feeds)) == ({}, 0)


def test_the_feeds_of_each_user_are_limited_and_those_of_administrators_are_not(database: Database) -> None:
    feeds, uid = Feeds(database), 65_533
    peers = [Peer("test", uid) for _ in range(3)]
    for peer in peers[:2]:
        feeds.open(peer, uid, "", None, 2)
    with pytest.raises(EngineError) as error:
        feeds.open(peers[2], uid, "", None, 2)
    assert error.value.code == "busy"
    tcp = [Peer("tcp", None) for _ in range(3)]
    for peer in tcp[:2]:
        feeds.open(peer, peer.identity, "", None, 2)
    with pytest.raises(EngineError):
        feeds.open(tcp[2], tcp[2].identity, "", None, 2)
    administrators = [Peer("root", 0) for _ in range(3)]
    for peer in administrators:
        feeds.subscribe(feeds.open(peer, 0, "", None, sys.maxsize), lambda: None)
    feeds.close(peers[0])
    feeds.open(peers[2], uid, "", None, 2)
    assert len(feeds) == 7
    assert len(database.wakeups.wakers) == 3, "the other feeds are left"
