"""The running daemon: one event loop, the server in it, and what the outside world does to a process.

        start: bind → wait out the leases of one who died → collect garbage once and freeze → READY
        run:   signals, watchdog, reload, upkeep of what changes with time alone
        stop:  STOPPING → drain the sessions → end the lease → remove the socket → (the caller releases the lock)

Signals only ever set something that the loop acts upon; none interrupts the store.
"""

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
import ssl
import time
from collections.abc import Callable, Mapping

from kvd import __version__
from kvd.engine.database import Database
from kvd.protocol.limits import Limits
from kvd.requests.access import Access
from kvd.requests.errors import RequestError
from kvd.requests.executor import Administration, Commands
from kvd.server.server import Server
from kvd.service import logs, systemd
from kvd.service.config.changes import changes
from kvd.service.config.sections import Config, History, Memory
from kvd.service.errors import ConfigError
from kvd.service.http import HttpSockets
from kvd.service.restart_fence import RestartFence
from kvd.service.storage import Storage
from kvd.service.tls import server_context
from kvd.store.prefixes import PrefixRules
from kvd.store.window import WindowLimits

logger = logging.getLogger(__name__)

# History that has grown too old while nobody writes goes in steps of so many keys, a millisecond or two each.
UPKEEP_KEYS = 2_000
UPKEEP_PAUSE_S = 0.005
# What is old enough to go, but needed by a snapshot, is looked at again after so long.
PINNED_PAUSE_S = 1.0
# A timer for a deadline is set for no longer than this, and for a little after it.
MAX_TIMER_S = 60.0
TIMER_GRAIN_S = 0.001
MAX_LOOK_S = 2.0  # at snapshots that may be idle


class Daemon(Administration):
    """One daemon, from its listening sockets, each with its address in words, to its end."""

    def __init__(
        self,
        config: Config,
        sockets: list[tuple[str, socket.socket]],
        *,
        activated: bool,
        tokens: Mapping[str, str | None],
        tls: ssl.SSLContext | None = None,
        read_config: Callable[[], Config],
        read_tokens: Callable[[Config], Mapping[str, str | None]],
        database: Database,
        fence: RestartFence,
        storage: Storage | None = None,
        http: HttpSockets | None = None,
    ) -> None:
        self.config = config
        self._http = http
        self._storage = storage
        self._tls = tls
        self._fence = fence
        # Why the daemon had to end, if something failed.
        self.failure: BaseException | None = None
        self._sockets = sockets
        self._activated = activated
        self._read_config = read_config
        self._read_tokens = read_tokens
        self._started = time.monotonic()
        self.database = database
        self._allow(config)
        self.database.on_history = self._schedule_upkeep
        self.database.on_growth = freeze_garbage_collector
        self.database.on_deadline = self._schedule_expiry
        self._upkeep_timer: asyncio.TimerHandle | None = None
        self._expiry_timer: asyncio.TimerHandle | None = None
        self.commands = Commands(self.database, config.limits, self, tokens)
        self.commands.snapshots.on_first = self._schedule_letting_go
        self.commands.near_caches.before_first = fence.write
        self.commands.access = Access(config.access)
        self.commands.slow_log.configure(config.slowlog.threshold_us, config.slowlog.max_entries)
        self._stop = asyncio.Event()
        self._server: Server | None = None

    # ------------------------------------------------------------------ life

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve until told to stop. ``ready`` is called once connections are accepted."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop_for, number)
        loop.add_signal_handler(signal.SIGHUP, self._reload_for_signal)
        if os.getpid() == 1:
            # Alone in a container: whose parents have gone become our children. We have none of our own to wait for.
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        self._server = Server(self.commands, loop, self.config.listen.busy_poll_us)
        if self._storage is not None:
            self.commands.durability = await self._storage.start(self._fail)
            self.commands.durability.before_write = self._server.turn.make
            self.commands.near_caches.tells_changes = self.config.data.sync != "always"
            self._schedule_upkeep()  # of the history that came with it
        await self._fence.wait()
        for _, listening in self._sockets:
            await self._server.listen(listening, own=not self._activated, tls=self._tls)
        if self._http is not None:
            await self._http.serve(self._server, self._tls)
        raise_descriptor_limit(self.config.limits)
        self._feed_watchdog()
        freeze_garbage_collector()
        ready()
        systemd.notify("READY=1", self._status_line())
        logger.info("started: kvd %s, pid %d, %s", __version__, os.getpid(), ", ".join(self._addresses()))

        await self._stop.wait()
        systemd.notify("STOPPING=1", "STATUS=draining")
        self._close_door()
        if self.failure is None:
            await self._server.stop()
        if self._storage is not None and self.failure is None:
            await self._storage.stop()
        self.commands.near_caches.close()
        if self.failure is None:
            self._fence.remove()
        logger.info("stopped: pid %d", os.getpid())
        # The loop goes, and its handlers with it; who asks once more shall not kill us while we clean up.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))

    def _close_door(self) -> None:
        """Let no more connections come to our own sockets; the ones in their queues can still be told.

        Without it, one that comes between the last accept and the close would end without a word. (On TCP this would
        throw away the queue.)
        """
        own = [] if self._activated else self._sockets
        for _, listening in (*own, *(() if self._http is None else self._http.own)):
            if listening.family == socket.AF_UNIX:
                listening.shutdown(socket.SHUT_RD)

    def _stop_for(self, number: int) -> None:
        if not self._stop.is_set():
            logger.info("stopping: %s", signal.Signals(number).name)
        self._stop.set()

    def _fail(self, error: BaseException) -> None:
        """The commit log cannot be written: answer nobody any more, and end. The next start finds out what is there."""
        if self.failure is None:
            self.failure = error
            logger.critical("the commit log cannot be written: %s; stopping, nothing that waits is answered", error)
            assert self._server is not None
            for session in list(self._server.sessions):
                session.abort()
            self._stop.set()

    def _feed_watchdog(self) -> None:
        """From the loop, so that a loop that hangs is noticed; to the very end, since a drain may take its time."""
        interval_s = systemd.watchdog_interval()
        if interval_s is not None:
            systemd.notify("WATCHDOG=1")
            asyncio.get_running_loop().call_later(interval_s, self._feed_watchdog)

    def _schedule_upkeep(self, delay_s: float = UPKEEP_PAUSE_S) -> None:
        if self._upkeep_timer is not None:
            self._upkeep_timer.cancel()
        self._upkeep_timer = asyncio.get_running_loop().call_later(delay_s, self._upkeep)

    def _upkeep(self) -> None:
        """Drop history that has grown too old; while there is none, nothing wakes up."""
        if self.database.tidy(UPKEEP_KEYS):
            self._schedule_upkeep()
        elif (due_us := self.database.history_due_us()) is not None:
            self._schedule_upkeep(due_us / 1_000_000 + UPKEEP_PAUSE_S if due_us else PINNED_PAUSE_S)
        else:
            self.database.on_history = self._schedule_upkeep

    def _schedule_expiry(self, delay_us: int) -> None:
        """Let keys expire on time though nobody asks for them. The database schedules the next one itself."""
        if self._expiry_timer is not None:
            self._expiry_timer.cancel()
        # A timer goes by another clock, which a suspended machine stops; so it looks again now and then.
        delay_s = min(delay_us / 1_000_000, MAX_TIMER_S) + TIMER_GRAIN_S
        self._expiry_timer = asyncio.get_running_loop().call_later(delay_s, self._expire)

    def _expire(self) -> None:
        self._expiry_timer = None
        if not self.database.expire_step():
            asyncio.get_running_loop().call_soon(self._expire)  # the others' turn first
            return
        due_us = self.database.next_look_us()
        if due_us is not None and self._expiry_timer is None:
            self._schedule_expiry(due_us)

    def _schedule_letting_go(self) -> None:
        # No longer than this, for a reload may lower the limit.
        delay_s = min(self.commands.limits.snapshot_idle_timeout_ms / 1000 / 4, MAX_LOOK_S)
        asyncio.get_running_loop().call_later(delay_s, self._let_snapshots_go)

    def _let_snapshots_go(self) -> None:
        """Release snapshots that nobody uses; while there are none, nothing wakes up."""
        if self.commands.snapshots.let_go(self.commands.limits.snapshot_idle_timeout_ms * 1000):
            self._schedule_letting_go()
        else:
            self.commands.snapshots.on_first = self._schedule_letting_go

    # ------------------------------------------------------------------ what administrators may ask for

    def status(self) -> list[tuple[str, str | int]]:
        """What ``kv status`` shows."""
        assert self._server is not None
        store = self.database.store
        return [
            ("server", f"kvd {__version__}"),
            ("pid", os.getpid()),
            ("uptime_s", int(time.monotonic() - self._started)),
            ("listening", " ".join(self._addresses())),
            ("activated", int(self._activated)),
            ("durability", self.config.data.sync if self._storage is not None else "memory"),
            ("store_id", self.database.store_id),
            ("version", store.version),
            ("oldest_readable_version", store.window.oldest_readable),
            ("keys", store.counters.keys),
            ("connections", len(self._server.sessions)),
            ("near_caches", self.commands.near_caches.clients),
            ("memory_rss_bytes", resident_bytes()),
        ]

    def checkpoint(self) -> int:
        """Begin a checkpoint. Raises Refusal without a data directory."""
        if self._storage is None:
            raise RequestError("bad_request", "everything is in memory only; start the daemon with --data-dir")
        self._storage.begin_checkpoint()
        return self.database.store.version

    def figures(self) -> list[tuple[str, int]]:
        """What the data directory counts."""
        return [] if self._storage is None else self._storage.figures()

    def resident_bytes(self) -> int:
        """Resident memory of this process."""
        return resident_bytes()

    def shutdown(self) -> int:
        """Stop once the reply is on its way."""
        asyncio.get_running_loop().call_soon(self._stop.set)
        return os.getpid()

    def reload(self) -> list[str]:
        """Apply a changed configuration, all of it or nothing. Raises Refusal."""
        systemd.notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            new = self._read_config()
            reloadable, restart = changes(self.config, new)
            if restart:
                raise ConfigError("these need a restart: " + "; ".join(restart))
            tokens = self._read_tokens(new)
            # Anew, and not into the one there is: that would go on trusting whom it trusts.
            tls = None if self._tls is None else server_context(new.listen)
        except ConfigError as error:
            logger.error("reload refused, nothing was changed: %s", error)
            raise RequestError("bad_request", f"nothing was changed: {error}") from error
        finally:
            systemd.notify("READY=1", self._status_line())
        self.config = new
        logs.apply_level(new)
        self.commands.limits = new.limits
        self.commands.slow_log.configure(new.slowlog.threshold_us, new.slowlog.max_entries)
        self._allow(new)
        assert self._server is not None
        if self._server.commands.access.rules != new.access:
            self._server.allow(Access(new.access))
        if tls is not None:
            self._server.speak(tls)
        if self.commands.tokens != tokens:
            self._server.know(tokens)
            reloadable.append("listen.token_file: other tokens")
        self.database.store.window.limits = window_limits(new.history)
        raise_descriptor_limit(new.limits)
        self._schedule_upkeep()
        logger.info("reloaded: %s", "; ".join(reloadable) or "nothing has changed")
        return reloadable

    def _allow(self, config: Config) -> None:
        """How much may be in memory, and what holds below prefixes."""
        room = self.database.room
        room.configure(memory_limit(config.memory), config.memory.max_keys, config.limits.max_frame_bytes)
        if room.rules.rules != config.prefix:
            room.set_rules(PrefixRules(config.prefix))

    def _reload_for_signal(self) -> None:
        if self._stop.is_set():
            return  # systemd must not be told READY=1 any more
        try:
            self.reload()
        except RequestError:
            pass  # written to the logging where it arose

    # ------------------------------------------------------------------ words

    def _addresses(self) -> list[str]:
        return [address for address, _ in (*self._sockets, *(() if self._http is None else self._http.sockets))]

    def _status_line(self) -> str:
        return f"STATUS=serving on {', '.join(self._addresses())}"


def freeze_garbage_collector() -> None:
    """Take all that lives now out of the garbage collector's sight.

    It has nothing to find there: heads, values and keys form no cycles. But the index's blocks are lists, and a full
    collection looks at each of a million keys in them, for 13 ms. Done at the start and whenever the store has grown.
    """
    gc.collect(1)
    gc.freeze()


def window_limits(history: History) -> WindowLimits:
    """The store's limits from the configuration's."""
    return WindowLimits(
        max_age_us=history.max_age_ms * 1000,
        max_bytes=history.max_bytes,
        max_commits=history.max_versions,
        max_pinned_bytes=4 * history.max_bytes,
    )


def memory_limit(memory: Memory) -> int:
    """How many bytes may be in memory: what is configured, or half of what the machine or its cgroup allows us."""
    if memory.max_bytes:
        return memory.max_bytes
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        with open("/proc/self/cgroup", encoding="ascii") as file:
            place = next(line for line in file if line.startswith("0::"))[3:].strip()
        with open(f"/sys/fs/cgroup{place}/memory.max", encoding="ascii") as file:
            most = min(most, int(file.read()))
    except (OSError, ValueError, StopIteration):
        pass  # no cgroup (version 2) of ours, or it says "max"
    return most // 2


def raise_descriptor_limit(limits: Limits) -> None:
    """Allow as many descriptors as the connections need, as far as the hard limit goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.max_connections + 256
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < limits.max_connections:
        logger.warning("the limit of %d open files allows fewer than %d connections", wanted, limits.max_connections)


def resident_bytes() -> int:
    """Resident memory of this process; 0 where /proc does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return 0
