"""A backup under way: all data, sent as a file while writes go on, and consistent at its end.

Each turn makes one piece: what was committed since the last piece, from the history window, and then a slice of the
keyspace (``kvd/journal/backup_file.py``). A piece is held until all that it shows may be shown. After the last slice,
the backup ends at the first version at which all commits have been sent. The file is the store at that version.

        window    ─────┤ pinned ─▶ sent ─▶ ├──▶ version
                       where the last piece ended that was complete

So a backup pins no more than what is committed while its reader is slow. If the reader is so slow that the window has
to move on, the backup fails. Commits are sent with the expiries that their keys have now. Where these differ from
those at the time of the commit, a later commit has changed them, and that one is sent before the end, too.
"""

from collections import deque
from collections.abc import Iterator

import msgspec

from kvd.engine.database import Database
from kvd.engine.feeds import Event
from kvd.journal.backup_file import BACKUP_MAGIC
from kvd.journal.checkpoint import SLICE_BYTES, SLICE_KEYS
from kvd.journal.records import Codec, Commits, End, Group, Header, Heads
from kvd.store.errors import SnapshotGone
from kvd.store.heads import FORGOTTEN, Head

# One piece has about this many keys of commits, or this many bytes of them; the rest is left for the next piece.
COMMITS_KEYS = 4_096
COMMITS_BYTES = 256 * 1024
# While pieces wait for the disk, others are made, until they take this many bytes together.
HELD_BYTES = 1024 * 1024
_TOO_SLOW = (
    "the backup was taken too slowly to keep up with the writes; history is kept for it, but only so much: "
    "see history.max_bytes"
)


class Piece(msgspec.Struct, eq=False):
    """Events to be sent once ``version`` may be shown, and how many bytes they hold."""

    events: list[Event]
    version: int
    bytes: int


class Backup:
    """The source of one backup's events. ``salt`` is a random number of 64 bits."""

    def __init__(self, database: Database, salt: int) -> None:
        self._database = database
        self._store = database.store
        self._codec = Codec(salt)
        self._pinned: int | None = self._store.pin()
        self._position = self._pinned  # all commits up to here are in a piece
        self._keys_in_all = self._store.counters.keys
        self._keys = 0
        self._slices = self._take_slices()
        store_id = bytes.fromhex(database.store_id)
        self._begin = Header(salt, 0, self._position, self._position, store_id).encode(BACKUP_MAGIC)
        self._held: deque[Piece] = deque()
        self._held_bytes = 0
        self._is_made = False  # all pieces are made

    @property
    def is_drained(self) -> bool:
        """Whether there are no events now."""
        return not self._can_send and not self._can_make

    @property
    def _can_send(self) -> bool:
        return bool(self._held) and self._held[0].version <= self._database.visible

    @property
    def _can_make(self) -> bool:
        return not self._is_made and self._held_bytes < HELD_BYTES

    def next_events(self) -> list[Event]:
        """Make one more piece, and return the events of the next one if they may be shown."""
        if self._can_make:
            self._make_piece()
        if not self._can_send:
            return []
        piece = self._held.popleft()
        self._held_bytes -= piece.bytes
        return piece.events

    def close(self) -> None:
        """Give back what the backup holds: its connection has ended."""
        self._is_made = True
        self._held.clear()
        self._repin(None)

    def _make_piece(self) -> None:
        # A later version is an expiry for which the log had no space; it may be shown.
        needed = self._database.recorded_version()
        try:
            events, size = self._next_piece()
        except SnapshotGone:
            self._is_made = True
            events, size = [("failed", _TOO_SLOW)], 0
        self._held.append(Piece(events, needed, size))
        self._held_bytes += size

    def _next_piece(self) -> tuple[list[Event], int]:
        """Return the events of the next piece, and how many bytes they hold. Raises SnapshotGone."""
        data, self._begin = self._begin, b""
        groups, is_all = self._next_commits()
        if groups:
            data += self._codec.encode(Commits(0, groups))
        heads = next(self._slices, None)
        if heads is not None and heads.keys:
            self._keys += len(heads.keys)
            data += self._codec.encode(heads)
        if heads is not None or not is_all:
            return [("data", data, self._keys, max(self._keys, self._keys_in_all))], len(data)
        self._is_made = True
        self._repin(None)
        version, time, keys = self._store.version, self._store.time, self._store.counters.keys
        data += self._codec.encode(End(keys, version, time))
        return [("data", data, keys, keys), ("end", version, time, keys)], len(data)

    def _next_commits(self) -> tuple[list[Group], bool]:
        """Return what was committed since the last piece, and whether that is all."""
        groups: list[Group] = []
        remaining_keys, budget_bytes = COMMITS_KEYS, COMMITS_BYTES
        for group in self._store.window.since(self._position):
            if remaining_keys <= 0 or budget_bytes <= 0:
                return groups, False
            record = self._database.record_of_commits(group)
            # A forgotten value was evicted since; that commit is sent before the end.
            record.values = [b"" if value is FORGOTTEN else value for value in record.values]
            groups.append(record)
            remaining_keys -= len(group.heads)
            budget_bytes -= sum(len(value or b"") for value in record.values) + sum(map(len, record.keys))
            self._position = group.heads[-1].version
        self._position = self._store.version
        if self._pinned != self._position:
            self._repin(self._store.pin())
        return groups, True

    def _repin(self, version: int | None) -> None:
        """Unpin the pinned version, in favour of ``version``, which is pinned already (None: of none)."""
        if self._pinned is not None:
            self._store.unpin(self._pinned)
        self._pinned = version

    def _take_slices(self) -> Iterator[Heads]:
        """Yield the current values in slices, each value as it is when its slice is taken."""
        find = self._store.find
        for part in self._store.parts():
            heads: list[Head] = []
            visits = size = 0
            for key in list(part):
                visits += 1
                head = find(key)
                if head is not None and head.value is not None:
                    heads.append(head)
                    size += len(head.value)
                if visits >= SLICE_KEYS or size >= SLICE_BYTES:
                    yield self._database.record_of_values(heads)
                    heads, visits, size = [], 0, 0
            if heads:
                yield self._database.record_of_values(heads)
