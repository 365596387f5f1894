"""Commits and values as the commit log, checkpoints and backups have them: with the deadlines of their keys."""

from operator import attrgetter

from kvd.engine.clocks import Clock
from kvd.journal.records import Group, Heads
from kvd.store.heads import Head
from kvd.store.lifetimes import Lifetimes
from kvd.store.window import Group as CommittedGroup

_key = attrgetter("key")
_value = attrgetter("value")
_version = attrgetter("version")

# Deadlines as wall-clock times, ephemeral keys, and what the wall clock says.
Expiries = tuple[dict[str, int] | None, list[str] | None, int | None]


class RecordMaker:
    """Makes records. A deadline goes by ``timer`` in memory and by ``clock`` in a record, which outlives a reboot."""

    def __init__(self, lifetimes: Lifetimes, clock: Clock, timer: Clock) -> None:
        self._lifetimes = lifetimes
        self._clock = clock
        self._timer = timer

    def commits(self, group: CommittedGroup, *, keeps: bool = False) -> Group:
        """A group of the history window, with the expiries that its keys have now.

        ``keeps``: without the values, because it has kept those that its keys had.
        """
        heads, author, lifetimes = group.heads, group.author, self._lifetimes
        keys = list(map(_key, heads))
        has_expiries = lifetimes.count or lifetimes.owners
        deadlines, ephemeral, wall = self.expiries_of(keys) if has_expiries else (None, None, None)
        who = (author.uid, author.pid, author.name)
        values: list[bytes | None] = [] if keeps else list(map(_value, heads))
        return Group(
            heads[0].version, group.time, who, group.commits, keys, values, deadlines, ephemeral, None, wall, keeps
        )

    def values(self, heads: list[Head]) -> Heads:
        """Current values, none of which is a tombstone."""
        keys = list(map(_key, heads))
        return Heads(keys, list(map(_value, heads)), list(map(_version, heads)), *self.expiries_of(keys))

    def expiries_of(self, keys: list[str]) -> Expiries:
        """The deadlines of ``keys`` as wall-clock times, the ephemeral ones among them, and what the wall clock says.

        Without deadlines the first and the last are None; without ephemeral keys in the store the second is.
        """
        lifetimes = self._lifetimes
        ephemeral = [key for key in keys if lifetimes.is_owned(key)] if lifetimes.owners else None
        found = zip(keys, lifetimes.deadlines_of(keys), strict=True)
        deadlines = {key: deadline for key, deadline in found if deadline is not None}
        if not deadlines:
            return None, ephemeral, None
        wall = self._clock()
        offset = wall - self._timer()
        return {key: deadline + offset for key, deadline in deadlines.items()}, ephemeral, wall
