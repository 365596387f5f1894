"""Feeds: what a watcher is told, in which order, and what becomes of one who cannot keep up.

A feed has a position in the history window, and nothing else: no queue of its own that could overflow. What it tells
next is read out of the window when its connection can take it.

        oldest_readable            position                     version
             │  told already           │  still to be told           │
        ─────┴─────────────────────────┴─────────────────────────────┴──▶
             └─ a position before this: the window has moved on. Tell everything there is at a pinned version
                ("reset", "item"…, "live"), and go on with changes behind it.

So a slow watcher costs the server nothing, and learns that it was too slow. Nothing here knows of connections: the
session takes the events and decides when (``session.py``).
"""

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Protocol

from kvd.engine.database import Database
from kvd.engine.errors import EngineError
from kvd.store.errors import SnapshotGone
from kvd.store.heads import FORGOTTEN, Head
from kvd.store.store import Store
from kvd.store.window import Group

Event = tuple[object, ...]

# One batch of events looks at about so many keys and holds about so many bytes of them.
BATCH_KEYS = 4_096
BATCH_BYTES = 64 * 1024
# A watcher hears of the version from time to time, although the commits concern others: a place from which to go on.
BOOKMARK_VERSIONS = 1_024
_EVENT_BYTES = 64


class EventSource(Protocol):
    """What a session needs of a feed. ``wake`` is called when there may be more to tell."""

    @property
    def is_drained(self) -> bool:
        """Whether there is nothing to tell now."""

    def next_events(self) -> list[Event]:
        """What is to be told next, in order; perhaps nothing."""

    def close(self) -> None:
        """Nobody listens any more."""


class Feed:
    """One watcher's view of the commits that concern ``prefix``. ``wake`` is called when there may be more to tell.

    It tells nothing that is not ``visible`` yet. ``settled`` lets some of what is due expire; whether that was all.
    """

    def __init__(
        self,
        store: Store,
        prefix: str,
        from_version: int | None,
        visible: Callable[[], int] | None = None,
        settled: Callable[[], bool] = lambda: True,
    ) -> None:
        self._store = store
        self._visible = visible or (lambda: store.version)
        self._settled = settled
        self.prefix = prefix
        # A version that this store never had is another store's: everything has to be told.
        known = from_version is not None and from_version <= store.version
        self._position: int = store.version if from_version is None else from_version if known else -1
        self._live = -1  # the last version that was told to be live
        self._next_item: str | None = None  # where the resynchronisation goes on, while one runs
        self._snapshot: int | None = None
        self._is_reset_told = False

    @property
    def is_drained(self) -> bool:
        """Whether there is nothing to tell now."""
        visible = self._visible()
        if self._snapshot is not None:
            return self._snapshot > visible
        return self._position >= visible and (self._live >= 0 or self._position > visible)

    def next_events(self) -> list[Event]:
        """The next batch, in order; empty if nothing happened that concerns this watcher."""
        if self._snapshot is None and self._position <= self._visible():
            try:
                return self._changes(self._visible())
            except SnapshotGone:
                if self._settled():  # else the rest of it first, the next time
                    self._reset()
        if self._snapshot is None:
            return []
        return [] if self._snapshot > self._visible() else self._items(self._snapshot)

    def close(self) -> None:
        """The watcher has gone."""
        if self._snapshot is not None:
            self._store.unpin(self._snapshot)
            self._snapshot = None

    # ------------------------------------------------------------------ changes

    def _changes(self, visible: int) -> list[Event]:
        """What happened up to ``visible``, or some of it. Raises SnapshotGone if the next is not known any more."""
        events: list[Event] = []
        remaining_keys, budget_bytes = BATCH_KEYS, BATCH_BYTES
        for group in self._store.window.after(self._position):
            for version, heads in group.each():
                if version <= self._position:
                    continue
                if version > visible:
                    return events + self._up_to(visible)
                if remaining_keys <= 0 or budget_bytes <= 0:
                    return events
                mine = [head for head in heads if head.key.startswith(self.prefix)]
                if any(head.value is FORGOTTEN for head in mine):
                    if not events:
                        raise SnapshotGone(self._position, version)
                    return events
                self._position = version
                remaining_keys -= len(heads)
                if mine:
                    events.append(_change(group, version, mine))
                    budget_bytes -= sum(len(head.value or b"") + len(head.key) for head in mine) + _EVENT_BYTES
        # Only a group that is still to come can have a version beyond those of the window.
        return events + self._up_to(visible)

    def _up_to(self, visible: int) -> list[Event]:
        """All is told up to ``visible``, which need not be a commit's: say so now and then."""
        self._position = max(self._position, visible)
        if self._live < 0 or self._position - self._live >= BOOKMARK_VERSIONS:
            return [self._say_live()]
        return []

    def _say_live(self) -> Event:
        self._live = self._position
        return "live", self._position

    # ------------------------------------------------------------------ resynchronisation

    def _reset(self) -> None:
        self._snapshot = self._store.pin()
        self._next_item = self.prefix
        self._is_reset_told = False

    def _items(self, snapshot: int) -> list[Event]:
        assert self._next_item is not None
        try:
            page = self._store.scan(self._next_item, None, BATCH_KEYS, at=snapshot, max_bytes=BATCH_BYTES)
        except SnapshotGone:  # it took too long, and others had to write: once more from the beginning
            self.close()
            return []
        events: list[Event] = [] if self._is_reset_told else [("reset", snapshot)]
        self._is_reset_told = True
        for item in page.items:
            if not item.key.startswith(self.prefix):
                return [*events, self._end_of_items(snapshot)]
            events.append(("item", item.key, item.value, item.version))
        self._next_item = page.next
        done = page.next is None or not page.next.startswith(self.prefix)
        return [*events, self._end_of_items(snapshot)] if done else events

    def _end_of_items(self, snapshot: int) -> Event:
        self.close()
        self._position = snapshot
        return self._say_live()


def _change(group: Group, version: int, heads: list[Head]) -> Event:
    return "change", version, group.time, group.author, {head.key: head.value for head in heads}


class Feeds:
    """All feeds: how many watches there may be, and who is woken by a commit."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._feeds: dict[EventSource, Hashable] = {}
        self._of_owner: dict[Hashable, EventSource] = {}
        self._users: dict[EventSource, Hashable] = {}
        self._wakes: dict[EventSource, Callable[[], None]] = {}
        self._watches: Counter[Hashable] = Counter()  # of each user

    def __len__(self) -> int:
        return len(self._feeds)

    def open(self, owner: Hashable, user: Hashable, prefix: str, from_version: int | None, limit: int) -> Feed:
        if self._watches[user] >= limit:
            raise EngineError("busy", f"there are {limit} watches of this user already; end some first")
        database = self._database
        feed = Feed(database.store, prefix, from_version, lambda: database.visible, database.expire_step)
        self.add(owner, feed)
        self._users[feed] = user
        self._watches[user] += 1
        return feed

    def add(self, owner: Hashable, feed: EventSource) -> None:
        """Wake this one too."""
        self._feeds[feed] = owner
        self._of_owner[owner] = feed
        self._database.on_commit = self._wake

    def subscribe(self, feed: EventSource, wake: Callable[[], None]) -> None:
        self._wakes[feed] = wake

    def close(self, owner: Hashable) -> None:
        feed = self._of_owner.pop(owner, None)
        if feed is not None:
            feed.close()
            self._feeds.pop(feed, None)
            self._wakes.pop(feed, None)
            user = self._users.pop(feed, None)
            if user is not None:
                self._watches[user] -= 1
                self._watches += Counter()
        if not self._feeds:
            self._database.on_commit = None

    def _wake(self) -> None:
        for wake in self._wakes.values():
            wake()
