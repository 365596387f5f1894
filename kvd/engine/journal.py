"""The database's side of the commit log: space is reserved before a change, and the change is added after it.

        MemoryJournal     there is no log: everything may be shown at once
        DurableJournal    a commit is added to the log in the step that makes it, and shown once it is durable enough

Deletions that happen anyway (expiry, eviction, the end of ephemeral keys) act in memory even on a full disk. Their
records wait in a *backlog*, and go into the log before the next commit that finds space.
"""

from collections.abc import Callable, Hashable
from typing import Protocol

from kvd.engine.records import RecordMaker
from kvd.engine.replay import Replay
from kvd.engine.writes import Writes
from kvd.journal.commit_log import GROUP_BYTES, ID_BYTES, KEY_BYTES, CommitLog
from kvd.journal.errors import NoSpace
from kvd.journal.records import Group
from kvd.store.window import Group as CommittedGroup


class Journal(Protocol):
    """Where commits go."""

    @property
    def outstanding_bytes(self) -> int:
        """How many bytes of memory hold commits on their way to the disk, at most."""

    def reserve(self, writes: Writes, commits: int, is_forced: bool) -> None:
        """Make sure that ``writes``, which make this many commits, fit into the log. Raises NoSpace.

        ``is_forced``: they happen anyway; without space their records go into the log with a later commit.
        """

    def add(self, version: int) -> bool:
        """Add the commits after ``version``. Return whether they may be shown at once."""

    def remember(self, scope: Hashable, id_: bytes, version: int, answer: object) -> None:
        """Add to the commit of ``version``, one of the last, the id that it was made under and its answer."""

    def visible(self, newest: int) -> int:
        """The newest version that a client may be shown; ``newest`` is the store's."""

    def recorded(self, newest: int) -> int:
        """The newest version that a later start will find, once it is on the disk; ``newest`` is the store's."""

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` each time more may be shown than before, unless that is at once."""


class MemoryJournal:
    """No log at all: nothing outlives the process."""

    outstanding_bytes = 0

    def reserve(self, writes: Writes, commits: int, is_forced: bool) -> None:
        """Need no space."""

    def add(self, version: int) -> bool:
        """Add nothing. What is in memory may be shown."""
        return True

    def remember(self, scope: Hashable, id_: bytes, version: int, answer: object) -> None:
        """Add nothing: the database remembers the answer itself."""

    def visible(self, newest: int) -> int:
        """Everything may be shown."""
        return newest

    def recorded(self, newest: int) -> int:
        """Every version counts as recorded."""
        return newest

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Never call: everything may be shown at once."""


class LogProgress(Protocol):
    """How far the log is on its way to the disk, and who sees to that. ``shown``: the newest version to be shown."""

    shown: int

    def wake(self) -> None:
        """Write what was added."""

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` each time ``shown`` has moved."""


class DurableJournal:
    """Adds the commits of a database with these contents to ``log``."""

    def __init__(self, log: CommitLog, contents: Replay, progress: LogProgress) -> None:
        self._log = log
        self._window = contents.store.window
        self._commit_clock = contents.commit_clock
        self._records = RecordMaker(contents.store.lifetimes, contents.clock, contents.timer)
        self._progress = progress
        self._wake = progress.wake
        self._reserved = 0
        # Deletions that were made although the log had no space; they go before the next commit.
        self._backlog: list[Group] = []
        self._backlog_bytes = 0
        self._is_deferred = False

    @property
    def outstanding_bytes(self) -> int:
        """How many bytes of memory hold commits on their way to the disk, at most."""
        return self._log.outstanding_bytes

    def reserve(self, writes: Writes, commits: int, is_forced: bool) -> None:
        """Make sure that ``writes`` fit into the log. Raises NoSpace unless ``is_forced``."""
        # A character has four bytes at most, and a key is named three times if it expires and is ephemeral.
        self._reserved = size = (
            GROUP_BYTES
            + len(writes) * KEY_BYTES
            + 12 * sum(map(len, writes))
            + sum(map(len, filter(None, writes.values())))
            + commits * ID_BYTES
            + self._backlog_bytes
        )
        self._is_deferred = False
        try:
            self._log.reserve(size)
        except NoSpace:
            if not is_forced:
                raise
            self._backlog_bytes = size
            self._is_deferred = True

    def add(self, version: int) -> bool:
        """Add the commits after ``version``, and have them written. They may be shown later."""
        groups = self._window.newest_since(version)
        if self._backlog or self._is_deferred:
            self._add_backlog(list(map(self._record_of, groups)))
        else:
            size = self._reserved
            for group in groups:
                self._log.add(self._record_of(group), size)
                size = 0  # it was for all of them
            self._wake()
        return False

    def _record_of(self, group: CommittedGroup) -> Group:
        """Return the record of a group that has just been made, and of the clock if it was set before."""
        record = self._records.commits(group, keeps=group.keeps)
        if (steps := self._window.steps) and steps[-1].version == record.version - 1:
            record.step = self._commit_clock.offset or 0, steps[-1].by
        return record

    def _add_backlog(self, groups: list[Group]) -> None:
        self._backlog += groups
        if self._is_deferred:
            self._is_deferred = False
            return
        size = self._reserved
        for group in self._backlog:
            self._log.add(group, size)
            size = 0
        self._backlog, self._backlog_bytes = [], 0
        self._wake()

    def remember(self, scope: Hashable, id_: bytes, version: int, answer: object) -> None:
        """Add to the commit of ``version``, one of the last, the id that it was made under and its answer."""
        group = self._log.group_of(version)
        group.ids = group.ids or []
        group.ids.append((scope, id_, version, answer))  # type: ignore[arg-type]  # scopes are uids

    def visible(self, newest: int) -> int:
        """The newest version that is as durable as was promised."""
        return self._progress.shown

    def recorded(self, newest: int) -> int:
        """The newest version in the log; later ones are deletions for which it has had no space."""
        return min(newest, self._log.added)

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` each time more may be shown than before."""
        self._progress.subscribe(listener)
