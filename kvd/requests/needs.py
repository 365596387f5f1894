"""What the replies to a frame wait for: which version must be written, and which synced, before they may leave.

A reply that reveals anything reveals a version. A plain read of keys that exist reveals the versions of those keys; any
other request reveals the current version. How durable that version must be is the policy of
``kvd/engine/durability.py``; a single write may ask for more or less (``sync`` in its options).
"""

from collections.abc import Collection, Sequence
from itertools import islice

from kvd.engine.database import Database
from kvd.engine.durability import NO_WAIT, Durability, LogPosition
from kvd.protocol.messages import AnyRequest
from kvd.requests.table import TABLE, Row, Shows, written_keys
from kvd.requests.turns import Steps

__all__ = ["NO_WAIT", "LogPosition", "Needs"]

# The rules of so many keys are looked up in one step.
_STEP = 256


class Needs:
    """Decides what the replies to requests that have just run wait for."""

    def __init__(self, database: Database, durability: Durability) -> None:
        self._database = database
        self._store = database.store
        self._durability = durability

    def position_for(self, requests: Sequence[AnyRequest]) -> LogPosition:
        """Return the log position that the replies wait for; NO_WAIT if they may leave now."""
        durability = self._durability
        version = durability.newest_unsettled()
        if not version:
            return NO_WAIT
        written = synced = 0
        for request in requests:
            row = TABLE[type(request)]
            if row.shows is Shows.NOTHING:
                continue
            shown = min(self._newest_shown(row, request), version) if row.shows is Shows.KEYS else version
            written = max(written, shown)
            if self._waits_for_sync(request) or shown > durability.ceiling_for(shown):
                synced = max(synced, shown)
        return LogPosition(written, synced) if written else NO_WAIT

    def position_in_steps(self, request: AnyRequest) -> Steps[LogPosition]:
        """As ``position_for``, for one costly request: it waits for the newest version, whichever keys it shows."""
        version = self._durability.newest_unsettled()
        if not version or TABLE[type(request)].shows is Shows.NOTHING:
            return NO_WAIT
        waits = self._asks_for_sync(request)
        if waits is None:
            waits, keys = False, iter(written_keys(request))
            while not waits and (some := list(islice(keys, _STEP))):
                waits = self._rules_ask_for_sync(some)
                yield
        if waits or version > self._durability.ceiling_for(version):
            return LogPosition(version, version)
        return LogPosition(version, 0)

    def _waits_for_sync(self, request: AnyRequest) -> bool:
        """Whether the reply waits for a sync. The request decides, else the rules for the keys that it writes."""
        waits = self._asks_for_sync(request)
        return self._rules_ask_for_sync(written_keys(request)) if waits is None else waits

    def _asks_for_sync(self, request: AnyRequest) -> bool | None:
        """Whether the reply waits for a sync; None if the rules for the keys that it writes decide."""
        options = getattr(request, "how", None)
        if options is not None and options.sync is not None:
            return bool(options.sync)
        if self._database.memory.rules.have_syncs and written_keys(request):
            return None
        return self._durability.always

    def _rules_ask_for_sync(self, keys: Collection[str]) -> bool:
        """Whether the rules for ``keys``, which a request writes, demand a sync: the strictest of them decides."""
        always, rules = self._durability.always, self._database.memory.rules
        by_rule = [None if (rule := rules.rule_of(key)) is None else rule.sync for key in keys]
        return any(always if sync is None else sync for sync in by_rule)

    def _newest_shown(self, row: Row, request: AnyRequest) -> int:
        """The newest version that a read of keys reveals; the current one if it reveals that a key is absent."""
        store, newest = self._store, 0
        for key in row.reads(request):
            head = store.find(key)
            if head is None:
                return store.version
            newest = max(newest, head.version)
        return newest
