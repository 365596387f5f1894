"""The running daemon: one event loop, what is served in it, and what the outside world does to a process.

        start: bind → wait out the leases of a daemon that died → collect garbage once and freeze → READY
        run:   signals, watchdog, reload
        stop:  STOPPING → drain the sessions → end the lease → remove the socket → (the caller releases the lock)

Signals only set something that the loop acts upon; none interrupts the store.
"""

import asyncio
import logging
import os
import signal
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from functools import partial

from kvd import __version__
from kvd.engine.replay import Replay
from kvd.requests.access import Access
from kvd.requests.errors import RequestError, shown
from kvd.server.session import GOODBYE, Session
from kvd.service import logs, systemd
from kvd.service.config.changes import changes
from kvd.service.config.sections import Config
from kvd.service.errors import ConfigError, StartError
from kvd.service.http import HttpSockets
from kvd.service.resources import freeze_garbage_collector, raise_descriptor_limit, resident_bytes
from kvd.service.restart_fence import RestartFence
from kvd.service.signals import EarlySignals
from kvd.service.storage import Storage
from kvd.service.tls import fingerprint, log_warnings, server_context
from kvd.service.unix_socket import OwnSocket
from kvd.service.upkeep import feed_watchdog
from kvd.service.wiring import build, limit_memory, window_limits

logger = logging.getLogger(__name__)


class Daemon:
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
        contents: Replay,
        fence: RestartFence,
        storage: Storage | None = None,
        http: HttpSockets | None = None,
        signals: EarlySignals | None = None,
        own: OwnSocket | None = None,
    ) -> None:
        self._signals = signals or EarlySignals()
        self._own = own
        self._certificates = fingerprint(config.listen)
        self.config = config
        self._http = http
        self._tls = tls
        self._fence = fence
        # Why the daemon had to end, if it failed.
        self.failure: BaseException | None = None
        self._sockets = sockets
        self._activated = activated
        self._read_config = read_config
        self._read_tokens = read_tokens
        self._started = time.monotonic()
        self._stop = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        parts = build(
            config,
            self._loop,
            contents=contents,
            storage=storage,
            fence=fence,
            tokens=tokens,
            backend=self,
            on_failure=self._fail,
        )
        self._database, self._near_caches, self._checkpoints = parts.database, parts.near_caches, parts.checkpoints
        self._executor, self._slow_log, self._server = parts.executor, parts.slow_log, parts.server

    # ------------------------------------------------------------------ life

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve until a signal or a request stops the daemon. ``ready`` is called once connections are accepted."""
        loop = self._loop
        for number in self._signals.stopping:
            loop.add_signal_handler(number, self._stop_for, number)
        loop.add_signal_handler(signal.SIGHUP, self._reload_for_signal)
        for came in self._signals.take():  # before the loop could act on it
            loop.call_soon(self._reload_for_signal if came == signal.SIGHUP else partial(self._stop_for, came))
        if os.getpid() == 1:
            # The first process of a container: orphans become its children, and it has none of its own to wait for.
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        await self._checkpoints.start()
        await self._fence.wait()
        for _, listening in self._sockets:
            await self._server.listen(
                listening, self._make_session, own=not self._activated, goodbye=GOODBYE, tls=self._tls
            )
        if self._http is not None:
            await self._http.serve(self._server, self._tls)
        raise_descriptor_limit(self.config.limits)
        feed_watchdog(loop)
        freeze_garbage_collector()
        ready()
        systemd.notify("READY=1", self._status_line())
        logger.info("started: kvd %s, pid %d, %s", __version__, os.getpid(), ", ".join(self._addresses()))
        log_warnings(self.config)

        await self._stop.wait()
        systemd.notify("STOPPING=1", "STATUS=draining")
        self._close_door()
        if self.failure is None:
            await self._server.stop()
        if self.failure is None:
            await self._checkpoints.stop()
        self._near_caches.close()
        if self.failure is None:
            self._fence.remove()
        logger.info("stopped: pid %d", os.getpid())
        # The loop ends, and its handlers with it: another signal must not kill the process while it cleans up.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))

    def _make_session(self) -> Session:
        return Session(self._server)

    def _close_door(self) -> None:
        """Let no more connections come to the daemon's own sockets; those in the queues still get an answer.

        Without it, a connection that comes between the last accept and the close would end without a word. (On TCP this
        would throw away the queue.)
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
        """The commit log has failed: answer no client any more, and end. The next start finds out what is there."""
        if self.failure is None:
            self.failure = error
            logger.critical("the commit log cannot be written: %s; stopping, nothing that waits is answered", error)
            for session in self._server.connections:
                session.abort()
            self._stop.set()

    # ------------------------------------------------------------------ what administrators may ask for

    def status(self) -> list[tuple[str, str | int]]:
        """What ``kv status`` shows."""
        store = self._database.store
        return [
            ("server", f"kvd {__version__}"),
            ("pid", os.getpid()),
            ("uptime_s", int(time.monotonic() - self._started)),
            ("listening", shown(" ".join(self._addresses()))),
            ("activated", int(self._activated)),
            ("durability", self._checkpoints.policy),
            ("store_id", self._database.store_id),
            ("version", store.version),
            ("oldest_readable_version", store.window.oldest_readable),
            ("keys", store.counters.keys),
            ("connections", len(self._server.connections)),
            ("near_caches", self._near_caches.clients),
            ("memory_rss_bytes", resident_bytes()),
        ]

    def checkpoint(self) -> int:
        """Begin a checkpoint. Raises RequestError without a data directory."""
        self._checkpoints.begin()
        return self._database.store.version

    def counters(self) -> list[tuple[str, int]]:
        """What the data directory counts."""
        return self._checkpoints.counters()

    def resident_bytes(self) -> int:
        """Resident memory of this process."""
        return resident_bytes()

    def shutdown(self) -> int:
        """Stop once the reply is on its way."""
        self._loop.call_soon(self._stop.set)
        return os.getpid()

    def reload(self) -> list[str]:
        """Apply a changed configuration, all of it or nothing. Raises RequestError."""
        systemd.notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            new = self._read_config()
            reloadable, restart = changes(self.config, new)
            if restart:
                raise ConfigError("these need a restart: " + "; ".join(restart))
            tokens = self._read_tokens(new)
            # A new one, because the old one would go on trusting the certificates that it trusts.
            tls = None if self._tls is None else server_context(new.listen)
        except ConfigError as error:
            logger.error("reload refused, nothing was changed: %s", error)
            raise RequestError("bad_request", f"nothing was changed: {error}") from error
        finally:
            systemd.notify("READY=1", self._status_line())
        self.config = new
        logs.apply_level(new)
        self._executor.set_limits(new.limits)
        self._slow_log.configure(new.slowlog.threshold_us, new.slowlog.max_entries)
        limit_memory(self._database, new)
        authentication = self._server.authentication
        if authentication.access.rules != new.access:
            self._server.set_access_rules(Access(new.access))
        if tls is not None:
            self._server.set_tls_context(tls)
            certificates, self._certificates = self._certificates, fingerprint(new.listen)
            if certificates != self._certificates:
                reloadable.append("listen.tls_certificate: other certificates, for new connections")
        if authentication.tokens != tokens:
            self._server.set_tokens(tokens)
            reloadable.append("listen.token_file: other tokens")
        self._database.store.window.limits = window_limits(new.history)
        raise_descriptor_limit(new.limits)
        self._database.upkeep.arm()
        if self._own is not None and not self._own.is_in_place():
            reloadable.append(self._make_socket_again(self._own))
        log_warnings(new)
        logger.info("reloaded: %s", "; ".join(reloadable) or "nothing has changed")
        return reloadable

    def _make_socket_again(self, own: OwnSocket) -> str:
        """Listen at the socket's path again after it was removed; return what was done, in words."""
        try:
            listening = own.bind_again()
        except StartError as error:
            logger.error("the socket is gone, and cannot be made again: %s", error)
            return f"listen.socket: it is gone, and cannot be made again: {error}"
        self._sockets = [(own.path, listening), *(each for each in self._sockets if each[0] != own.path)]
        listen = self._server.listen(listening, self._make_session, own=True, goodbye=GOODBYE)
        self._remaking = self._loop.create_task(listen)
        return f"listen.socket: it was gone, and was made again at {own.path}"

    def _reload_for_signal(self) -> None:
        if self._stop.is_set():
            return  # READY=1 must not reach systemd any more
        try:
            self.reload()
        except RequestError:
            pass  # written to the logging where it arose

    # ------------------------------------------------------------------ words

    def _addresses(self) -> list[str]:
        return [address for address, _ in (*self._sockets, *(() if self._http is None else self._http.sockets))]

    def _status_line(self) -> str:
        return f"STATUS=serving on {', '.join(self._addresses())}"
