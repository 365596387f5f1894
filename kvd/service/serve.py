"""``kv serve``: from the configuration to a running daemon, in the foreground or detached.

What can fail for a reason that the caller can mend (configuration, lock, socket) fails here, with a line on stderr and
an exit code, before the daemon says that it is ready.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Mapping

from kvd.engine.replay import Replay
from kvd.protocol import exits
from kvd.service import logs, systemd
from kvd.service.config.loader import ConfigSources
from kvd.service.config.sections import Config
from kvd.service.config.tokens import read_tokens
from kvd.service.daemon import daemonize, ensure_standard_fds
from kvd.service.errors import ConfigError, StartError, print_error
from kvd.service.http import PASSED_NAME, HttpSockets, check_installed
from kvd.service.launcher import ping
from kvd.service.locks import LockFile
from kvd.service.process import Daemon
from kvd.service.progress import NullProgress, ProgressBar
from kvd.service.resources import boot_id
from kvd.service.restart_fence import RestartFence
from kvd.service.signals import EarlySignals, Stopped
from kvd.service.storage import DataDirectory, Storage
from kvd.service.tcp_socket import bind_tcp_socket, check_exposure
from kvd.service.tls import server_context
from kvd.service.unix_socket import OwnSocket, make_directory
from kvd.service.wiring import window_limits

logger = logging.getLogger(__name__)

LOCK_SUFFIX = ".lock"


def serve(
    flags: Mapping[str, object], config_file: str | None, *, daemon: bool, bar: Callable[[], ProgressBar] = NullProgress
) -> int:
    """Run a daemon; return the exit code. With ``daemon``, return 0 as soon as a detached one accepts connections.

    ``bar`` makes the progress bar of a recovery.
    """
    signals = EarlySignals()
    if not daemon:  # else the process that waits for the daemon has handlers of its own
        signals.catch()
    ensure_standard_fds()
    try:
        return _Start(ConfigSources(flags, config_file), signals, bar=bar).run(daemon=daemon)
    except Stopped as stopped:
        logger.info("stopping: %s, before it served", stopped.name)
        return 0
    except StartError as error:
        return print_error(error.text, error.exit_code)


def check_config(flags: Mapping[str, object], config_file: str | None) -> int:
    """Check whether a daemon could start with this configuration, as far as the configuration decides it."""
    try:
        config = ConfigSources(flags, config_file).read()
        read_tokens(config)
        server_context(config.listen)
        if config.http.listen:
            check_installed()
    except ConfigError as error:
        return print_error(error.text, error.exit_code)
    return 0


class _Start:
    """The foreground's part of a start: what it reads, opens and locks before there is a daemon."""

    def __init__(self, sources: ConfigSources, signals: EarlySignals, *, bar: Callable[[], ProgressBar]) -> None:
        self.sources = sources
        self.signals = signals
        self.bar = bar
        self.config = sources.read()
        self.tokens = read_tokens(self.config)
        self.tls = server_context(self.config.listen)
        passed = systemd.listen_fds()
        self.activated = [listening for name, listening in passed if name != PASSED_NAME]
        self.http = HttpSockets(self.config, [listening for name, listening in passed if name == PASSED_NAME])
        self.socket_path = _socket_path(self.config, self.activated)
        self.contents = Replay(window_limits(self.config.history), boot=boot_id())
        self.data = DataDirectory(self.config.data, self.contents) if self.config.data.dir else None

    def run(self, *, daemon: bool) -> int:
        """Take the locks, then run in this process or a detached one; return the exit code."""
        handler = logs.open_handler(logs.log_target(self.config, daemon=daemon))
        make_directory(self.socket_path, _directory_mode(self.config))
        lock = LockFile(self.socket_path + LOCK_SUFFIX)
        lock.acquire()
        fenced = [self.socket_path]
        try:
            # In the foreground, so that starting a second daemon on the directory fails at once.
            if self.data is not None:
                self.data.lock.acquire()
                fenced.append(self.data.lock.path)
            process = _DaemonProcess(self, handler, RestartFence(*fenced))
            return self._run_detached(process, lock) if daemon else process.run(_say_started)
        finally:
            if self.data is not None:
                self.data.lock.release()
            lock.release()

    def _run_detached(self, process: "_DaemonProcess", lock: LockFile) -> int:
        passed = (*self.activated, *self.http.passed)
        return daemonize(
            lambda pipe: process.run(pipe.send_ready),
            lock=lock,
            preserve=[*logs.descriptors(process.handler), *(listening.fileno() for listening in passed)],
            further_locks=[] if self.data is None else [self.data.lock],
            confirm=lambda: ping(self.socket_path),
        )


class _DaemonProcess:
    """The part of the process that serves: it opens what a daemon needs, runs its loop, and cleans up."""

    def __init__(self, start: _Start, handler: logging.Handler, fence: RestartFence) -> None:
        self._start = start
        self._listen = start.config.listen
        self.handler = handler
        self._fence = fence
        self._own: OwnSocket | None = None

    def run(self, ready: Callable[[], None]) -> int:
        """Open the sockets, run the loop to its end, and remove the daemon's own sockets; return the exit code."""
        import uvloop

        start = self._start
        start.signals.catch()
        logs.start(self.handler, start.config)
        try:
            start.signals.check()
            storage = None if start.data is None else start.data.open(start.bar, start.signals.check)
        except Stopped as stopped:
            logger.info("stopping: %s, before it served", stopped.name)
            return 0
        self._own = None if start.activated else self._bind_unix()
        try:
            sockets = [*start.activated, *([] if self._own is None else [self._own.listening]), *self._bind_tcp()]
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                addressed = [(self._address(each), each) for each in sockets]
                failure = runner.run(self._serve(addressed, ready, storage))
        finally:
            start.http.close()
            if self._own is not None:
                self._own.remove()
        return exits.IO_ERROR if failure else 0

    def _bind_unix(self) -> OwnSocket:
        return OwnSocket(self._start.socket_path, int(self._listen.socket_mode, 8), self._listen.socket_group)

    def _bind_tcp(self) -> list[socket.socket]:
        """Bind the TCP sockets and those for HTTP; return the former. Raises StartError."""
        start, has_tokens = self._start, bool(self._start.tokens)
        tcp = [bind_tcp_socket(address) for address in self._listen.tcp]
        check_exposure([*start.activated, *tcp], self._listen, has_tokens=has_tokens, is_open=False)
        start.http.bind(bind_tcp_socket)
        http = [listening for _, listening in start.http.sockets]
        check_exposure(http, self._listen, has_tokens=has_tokens, is_open=start.config.http.open)
        return tcp

    def _address(self, listening: socket.socket) -> str:
        """A listening socket's address as a client names it. The daemon's own was bound under a temporary name."""
        if listening.family == socket.AF_UNIX:
            return systemd.path_of(listening) if self._start.activated else self._start.socket_path
        host, port = listening.getsockname()[:2]
        scheme = "tls" if self._listen.tls_certificate else "tcp"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    async def _serve(
        self, sockets: list[tuple[str, socket.socket]], ready: Callable[[], None], storage: Storage | None
    ) -> BaseException | None:
        """Run the daemon; return why it failed, or None."""
        start = self._start
        daemon = Daemon(
            start.config,
            sockets,
            activated=bool(start.activated),
            tokens=start.tokens,
            tls=start.tls,
            read_config=start.sources.read,
            read_tokens=read_tokens,
            contents=start.contents,
            fence=self._fence,
            storage=storage,
            http=start.http,
            signals=start.signals,
            own=self._own,
        )
        await daemon.run(ready)
        return daemon.failure


def _socket_path(config: Config, activated: list[socket.socket]) -> str:
    """The path of the first Unix socket that the service manager passed, else the configured one."""
    paths = [systemd.path_of(listening) for listening in activated if listening.family == socket.AF_UNIX]
    return paths[0] if paths else config.listen.socket


def _directory_mode(config: Config) -> int:
    """The mode of a directory that is made for the socket; in it, the socket's own mode decides.

    A user's own directory is closed. But if other users may use the socket, they must be able to reach it; and root's
    directory, in /run, may have to hold the socket unit's socket one day.
    """
    is_shared = os.getuid() == 0 or int(config.listen.socket_mode, 8) & 0o077
    return 0o755 if is_shared else 0o700


def _say_started() -> None:
    if systemd.is_journal(1):
        return  # no person reads it, and the log says so
    # Not print: at exit Python writes once more what print could not write, and the exit code becomes 120.
    try:
        os.write(1, b"Kvd started. Press ctrl-c to stop.\n")
    except OSError:
        pass  # stdout has no reader, which is no reason not to serve
