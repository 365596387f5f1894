"""The requests about the server itself: its counters, its configuration, its shutdown."""

import logging
from typing import Protocol

from kvd.engine.engine import Engine
from kvd.protocol import messages
from kvd.requests.access import Identity
from kvd.requests.authentication import Authentication
from kvd.requests.errors import RequestError
from kvd.requests.limits import LimitChecker
from kvd.requests.peer import Peer
from kvd.store.largest import largest
from kvd.telemetry.exposition import Exposition, load_renderer
from kvd.telemetry.figures import Figures
from kvd.telemetry.slow_log import SlowFrame
from kvd.telemetry.telemetry import Telemetry

logger = logging.getLogger(__name__)


class AdminBackend(Protocol):
    """What the process offers to administrators."""

    def status(self) -> list[tuple[str, str | int]]:
        """Return name and value of all that ``kv status`` shows."""

    def reload(self) -> list[str]:
        """Read the configuration again; return what changed, in words. Raises RequestError with the reason."""

    def checkpoint(self) -> int:
        """Begin a checkpoint of the whole store; return the version that it will cover. Raises RequestError."""

    def counters(self) -> list[tuple[str, int]]:
        """Return name and value of what the process counts."""

    def resident_bytes(self) -> int:
        """Return the resident memory of the process; 0 if it is not known."""

    def shutdown(self) -> int:
        """Begin an orderly stop after the reply has been sent; return the process id."""


class AdminHandlers:
    """The requests about the server. The table says which of them need the right to administer."""

    def __init__(
        self,
        engine: Engine,
        telemetry: Telemetry,
        limits: LimitChecker,
        authentication: Authentication,
        backend: AdminBackend,
    ) -> None:
        self._engine = engine
        self._telemetry = telemetry
        self._limits = limits
        self._authentication = authentication
        self._backend = backend
        self._exposition = Exposition(self.figures, load_renderer())

    def ping(self, _: messages.Ping, __: Peer) -> bool:
        """Return True: the server is alive."""
        return True

    def metrics(self, _: messages.Metrics, __: Peer) -> list[tuple[str, int]]:
        """Return name and value of all counters."""
        metrics = self._telemetry.metrics
        counters = [("get_misses", metrics.get_misses), ("conflicts", metrics.conflicts)]
        return [*self._engine.database.metrics(), *counters, *self._backend.counters()]

    def exposition(self, _: messages.Exposition, __: Peer) -> str:
        """Return everything that is measured as text in Prometheus' format."""
        text = self._exposition.text()
        if text is None:
            reason = "the daemon's installation has no prometheus-client; install kvd[prometheus] and restart it"
            raise RequestError("bad_request", reason)
        self._telemetry.loop_lag.measure()
        return text

    def status(self, _: messages.Status, __: Peer) -> list[tuple[str, str | int]]:
        """Return what the daemon says about itself."""
        return self._backend.status()

    def reload(self, _: messages.Reload, __: Peer) -> list[str]:
        """Read the configuration again; return what changed."""
        return self._backend.reload()

    def explain_access(self, request: messages.Access, _: Peer) -> tuple[list[str], str, list[str]]:
        """Return what a client may do with a key, and why."""
        self._limits.key(request.key)
        who = Identity(
            uid=request.uid, gids=frozenset(request.gids), certificate=request.certificate, token=request.token
        )
        return self._authentication.access.explain(who, request.key)

    def list_slow_frames(self, request: messages.SlowLog, _: Peer) -> list[SlowFrame]:
        """Return the frames that held the loop, the newest first."""
        self._limits.listed(request.limit)
        slow_log = self._telemetry.slow_log
        frames = slow_log.newest(request.limit)
        if request.reset:
            slow_log.reset()
        return frames

    def list_largest_keys(self, request: messages.Largest, _: Peer) -> tuple[list[tuple[str, int]], str | None]:
        """Return the largest values of the next keys, and where the next page begins."""
        self._limits.prefix(request.start)
        self._limits.listed(request.limit)
        return largest(self._engine.database.store, request.start, request.limit)

    def list_hottest_keys(self, request: messages.Hottest, _: Peer) -> tuple[int, list[tuple[str, int]]]:
        """Return how many ms the report covers, and the keys that are read or written most."""
        self._limits.listed(request.limit)
        hot_keys = self._telemetry.hot_keys
        samples = hot_keys.reads if request.by == "reads" else hot_keys.writes
        return samples.most_common(request.limit)

    def checkpoint(self, _: messages.Checkpoint, __: Peer) -> int:
        """Begin a checkpoint; return a version that it will cover."""
        return self._backend.checkpoint()

    def shutdown(self, _: messages.Shutdown, peer: Peer) -> list[int]:
        """Begin an orderly stop; return the process id."""
        logger.info("shutdown asked for by %s", peer.name)
        return [self._backend.shutdown()]

    def figures(self) -> Figures:
        """Return all that is measured, as it is now."""
        engine, metrics = self._engine, self._telemetry.metrics
        database = engine.database
        store, memory = database.store, database.memory
        window, counters = store.window, store.counters
        process = dict(self._backend.counters())
        return Figures(
            keys=counters.keys,
            value_bytes=counters.value_bytes,
            set_operations=counters.set_operations,
            get_operations=counters.get_operations,
            get_misses=metrics.get_misses,
            delete_operations=counters.delete_operations,
            expired_keys=counters.expired_keys,
            evicted_keys=counters.evicted_keys,
            keys_with_deadline=database.count_deadlines(),
            commits=store.version - metrics.first_version,
            conflicts=metrics.conflicts,
            version=store.version,
            errors=dict(metrics.errors),
            history_versions=window.commits,
            history_bytes=window.bytes,
            history_age_us=database.history_age_us(),
            oldest_readable_version=window.oldest_readable,
            snapshots=len(engine.snapshots),
            pinned_versions=window.pinned,
            memory_by_kind=memory.by_kind(),
            memory_limit_bytes=memory.max_bytes,
            connections=self._telemetry.count_connections(),
            connections_accepted=metrics.accepted,
            connections_refused=metrics.rejected,
            feeds=len(engine.feeds),
            near_cache_clients=engine.near_caches.clients,
            frame_times=metrics.frames(),
            sliced_times=metrics.sliced,
            loop_lag_times=self._telemetry.loop_lag.times,
            has_log=engine.durability.may_wait,
            sync_times=engine.durability.sync_times,
            log_bytes_written=process.get("log_bytes_written", 0),
            log_synced_version=process.get("log_synced_version", 0),
            checkpoint_version=process.get("checkpoint_version", 0),
            checkpoint_failures=process.get("checkpoint_failures", 0),
            resident_bytes=self._backend.resident_bytes(),
        )
