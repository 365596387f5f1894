"""Everything that a daemon is made of, built from the bottom to the top; no object is finished later.

        contents ─▶ log, durability ─▶ journal ─▶ database, and what follows from commits ─▶ executor ─▶ server
        (recovered) (storage.py)       (engine/)                                           (requests/) (server/)

What runs them is ``process.py``.
"""

import asyncio
import sys
from collections.abc import Callable, Mapping
from typing import NamedTuple

from kvd.engine.database import Database
from kvd.engine.durability import Durability, LogDurability, MemoryDurability
from kvd.engine.engine import Engine
from kvd.engine.feeds import Feeds
from kvd.engine.journal import DurableJournal, Journal, MemoryJournal
from kvd.engine.near_cache import NearCaches
from kvd.engine.replay import Replay
from kvd.engine.scheduler import Handle
from kvd.engine.snapshots import Snapshots
from kvd.requests.access import Access
from kvd.requests.admin import AdminBackend
from kvd.requests.authentication import Authentication
from kvd.requests.executor import Executor
from kvd.requests.limits import LimitChecker
from kvd.requests.sliced import HeldBytes
from kvd.requests.turns import Turns
from kvd.server.connection import Connections
from kvd.server.server import Server
from kvd.service.checkpoints import Checkpoints, DiskCheckpoints, NoCheckpoints
from kvd.service.config.sections import Config, History
from kvd.service.resources import freeze_garbage_collector, memory_limit
from kvd.service.restart_fence import RestartFence
from kvd.service.storage import Storage
from kvd.store.prefixes import PrefixRules
from kvd.store.window import WindowLimits
from kvd.telemetry.hot_keys import HotKeys
from kvd.telemetry.metrics import LoopLag, ServerMetrics
from kvd.telemetry.slow_log import SlowLog
from kvd.telemetry.telemetry import Telemetry

# The log's thread needs the interpreter for an instant between two system calls, and must not wait 5 ms for it.
SWITCH_INTERVAL_S = 0.000_2


class LoopScheduler:
    """Calls functions later in an event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def now(self) -> float:
        """Seconds of the loop's clock."""
        return self._loop.time()

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Handle:
        """Call ``callback`` in the loop after ``delay_s``."""
        return self._loop.call_later(delay_s, callback)


class Parts(NamedTuple):
    """What the process runs."""

    database: Database
    near_caches: NearCaches
    checkpoints: Checkpoints
    slow_log: SlowLog
    executor: Executor
    server: Server


def build(
    config: Config,
    loop: asyncio.AbstractEventLoop,
    *,
    contents: Replay,
    storage: Storage | None,
    fence: RestartFence,
    tokens: Mapping[str, str | None],
    backend: AdminBackend,
    on_failure: Callable[[BaseException], None],
) -> Parts:
    """Build a daemon. ``storage`` is its data directory, if it has one; ``on_failure`` is called if the log fails."""
    durability: Durability = MemoryDurability()
    journal: Journal = MemoryJournal()
    if storage is not None:
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        sync, interval_ms = storage.config.sync, storage.config.interval_ms
        log, sync_times = storage.log, storage.sync_times
        durability = log_durability = LogDurability(
            contents.store, log, sync, interval_ms, loop, on_failure, sync_times
        )
        journal = DurableJournal(log, contents, log_durability)
    connections, sliced_bytes = Connections(loop.time), HeldBytes()
    database = Database(
        contents=contents,
        journal=journal,
        scheduler=LoopScheduler(loop),
        store_id="" if storage is None else storage.store_id.hex(),
        buffer_bytes=lambda: connections.buffer_bytes() + sliced_bytes.total,
        on_growth=freeze_garbage_collector,
    )
    limit_memory(database, config, at_once=True)
    engine = Engine(
        database,
        durability,
        Snapshots(database.store, database.timer, database.scheduler),
        Feeds(database),
        # Where a read of what has changed would wait for the disk, clients need not know of it early.
        NearCaches(database.generations, database.scheduler, fence.write, notes_changes=not durability.always),
    )
    slow_log = SlowLog(config.slowlog.threshold_us, config.slowlog.max_entries)
    telemetry = Telemetry(
        ServerMetrics(database.store.version), slow_log, HotKeys(), LoopLag(loop.call_later), connections.__len__
    )
    limits = LimitChecker(config.limits)
    authentication = Authentication(database, limits, Access(config.access), tokens)
    turns = Turns(loop.call_soon)
    executor = Executor(engine, telemetry, limits, authentication, backend, turns)
    server = Server(
        executor,
        engine,
        authentication,
        telemetry.metrics,
        connections,
        sliced_bytes,
        loop,
        turns,
        config.listen.busy_poll_us,
    )
    checkpoints: Checkpoints = NoCheckpoints()
    if storage is not None:
        checkpoints = DiskCheckpoints(storage, database, log_durability, loop, on_failure)
    return Parts(database, engine.near_caches, checkpoints, slow_log, executor, server)


def limit_memory(database: Database, config: Config, *, at_once: bool = False) -> None:
    """Apply the limits of memory, and the rules of prefixes, that a configuration sets.

    They may take many steps of the loop; ``at_once``: before any client is served.
    """
    memory = database.memory
    memory.configure(memory_limit(config.memory), config.memory.max_keys, config.limits.max_frame_bytes)
    if memory.rules.rules != config.prefix:
        memory.set_rules(PrefixRules(config.prefix), at_once=at_once)
    else:
        memory.shrink()


def window_limits(history: History) -> WindowLimits:
    """The limits of the history window that a configuration sets."""
    return WindowLimits(
        max_age_us=history.max_age_ms * 1000,
        max_bytes=history.max_bytes,
        max_commits=history.max_versions,
        max_pinned_bytes=4 * history.max_bytes,
    )
