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
from kvd.service.config.loader import load
from kvd.service.config.sections import Config
from kvd.service.config.tokens import read_tokens
from kvd.service.daemon import daemonize, ensure_standard_fds
from kvd.service.errors import ConfigError, StartError, print_error
from kvd.service.http import PASSED_NAME, HttpSockets, check_installed
from kvd.service.launcher import ping
from kvd.service.locks import LockFile
from kvd.service.process import Daemon
from kvd.service.progress import NullProgress, ProgressBar
from kvd.service.restart_fence import RestartFence
from kvd.service.storage import DataDirectory, Storage
from kvd.service.tcp_socket import bind_tcp_socket, check_exposure
from kvd.service.tls import server_context
from kvd.service.unix_socket import bind_unix_socket, make_directory, remove_socket, socket_inode
from kvd.service.wiring import window_limits

LOCK_SUFFIX = ".lock"


def serve(
    flags: Mapping[str, object], config_file: str | None, *, daemon: bool, bar: Callable[[], ProgressBar] = NullProgress
) -> int:
    """Run a daemon; return the exit code. With ``daemon``, return 0 as soon as a detached one accepts connections.

    ``bar`` makes the progress bar of a recovery.
    """
    ensure_standard_fds()
    try:
        return _Start(flags, config_file, daemon=daemon, bar=bar).run()
    except StartError as error:
        return print_error(error.text, error.exit_code)


def check_config(flags: Mapping[str, object], config_file: str | None) -> int:
    """Check whether a daemon could start with this configuration, as far as the configuration decides it."""
    try:
        config = load(flags, os.environ, config_file)
        read_tokens(config)
        server_context(config.listen)
        if config.http.listen:
            check_installed()
    except ConfigError as error:
        return print_error(error.text, error.exit_code)
    return 0


class _Start:
    """One start: what the foreground reads and locks, and what the daemon's own process does with it."""

    def __init__(
        self, flags: Mapping[str, object], config_file: str | None, *, daemon: bool, bar: Callable[[], ProgressBar]
    ) -> None:
        # Kept as they are now, because a reload reads the same sources, from another directory.
        self._flags = flags
        self._config_file = config_file
        self._environ = dict(os.environ)
        self._directory = _working_directory()
        self._is_daemon = daemon
        self._bar = bar
        self.config = self._read_config()
        self._contents = Replay(window_limits(self.config.history))
        self._data: DataDirectory | None = None
        self._tokens = read_tokens(self.config)
        self._tls = server_context(self.config.listen)
        passed = systemd.listen_fds()
        self._activated = [listening for name, listening in passed if name != PASSED_NAME]
        self._http = HttpSockets(self.config, [listening for name, listening in passed if name == PASSED_NAME])
        self._socket_path = self._choose_socket_path()

    def _read_config(self) -> Config:
        return load(self._flags, self._environ, self._config_file, directory=self._directory)

    def _choose_socket_path(self) -> str:
        paths = [systemd.path_of(listening) for listening in self._activated if listening.family == socket.AF_UNIX]
        return paths[0] if paths else self.config.listen.socket

    def _directory_mode(self) -> int:
        """The mode of a directory that is made for the socket; in it, the socket's own mode decides.

        A user's own directory is closed. But if other users may use the socket, they must be able to reach it; and
        root's directory, in /run, may have to hold the socket unit's socket one day.
        """
        is_shared = os.getuid() == 0 or int(self.config.listen.socket_mode, 8) & 0o077
        return 0o755 if is_shared else 0o700

    # ------------------------------------------------------------------ in the foreground

    def run(self) -> int:
        """Take the locks, then run in this process or a detached one; return the exit code."""
        handler = logs.open_handler(logs.log_target(self.config, daemon=self._is_daemon))
        make_directory(self._socket_path, self._directory_mode())
        lock = LockFile(self._socket_path + LOCK_SUFFIX)
        lock.acquire()
        self._fence = RestartFence(self._socket_path)
        try:
            self._lock_data()
            if self._is_daemon:
                return self._run_detached(lock, handler)
            return self._run_process(handler, _say_started)
        finally:
            if self._data is not None:
                self._data.lock_file.release()
            lock.release()

    def _lock_data(self) -> None:
        """Lock the data directory, in the foreground, so that starting a second daemon on it fails at once."""
        if self.config.data.dir:
            self._data = DataDirectory(self.config.data, self._contents)
            self._data.lock()

    def _run_detached(self, lock: LockFile, handler: logging.Handler) -> int:
        passed = (*self._activated, *self._http.passed)
        preserve = [*logs.descriptors(handler), *(listening.fileno() for listening in passed)]
        return daemonize(
            lambda pipe: self._run_process(handler, pipe.send_ready),
            lock=lock,
            preserve=preserve,
            further_locks=[] if self._data is None else [self._data.lock_file],
            confirm=lambda: ping(self._socket_path),
        )

    # ------------------------------------------------------------------ in the process that serves

    def _run_process(self, handler: logging.Handler, ready: Callable[[], None]) -> int:
        """Open the sockets, run the loop to its end, and remove the daemon's own socket; return the exit code."""
        import uvloop

        logs.start(handler, self.config)
        storage = None if self._data is None else self._data.open(self._bar)
        own = [] if self._activated else [self._bind_unix()]
        inode = socket_inode(self._socket_path)
        try:
            sockets = [*self._activated, *own, *self._bind_tcp()]
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                addressed = [(self._address(each), each) for each in sockets]
                failure = runner.run(self._serve(addressed, ready, storage))
        finally:
            self._http.close()
            if own and inode is not None:
                remove_socket(self._socket_path, inode)
        return exits.IO_ERROR if failure else 0

    def _bind_unix(self) -> socket.socket:
        listen = self.config.listen
        return bind_unix_socket(self._socket_path, int(listen.socket_mode, 8), listen.socket_group)

    def _bind_tcp(self) -> list[socket.socket]:
        """Bind the TCP sockets and those for HTTP; return the former. Raises StartError."""
        listen, has_tokens = self.config.listen, bool(self._tokens)
        tcp = [bind_tcp_socket(address) for address in listen.tcp]
        check_exposure([*self._activated, *tcp], listen, has_tokens=has_tokens, is_open=False)
        self._http.bind(bind_tcp_socket)
        http = [listening for _, listening in self._http.sockets]
        check_exposure(http, listen, has_tokens=has_tokens, is_open=self.config.http.open)
        return tcp

    def _address(self, listening: socket.socket) -> str:
        """A listening socket's address as a client names it. The daemon's own was bound under a temporary name."""
        if listening.family == socket.AF_UNIX:
            return systemd.path_of(listening) if self._activated else self._socket_path
        host, port = listening.getsockname()[:2]
        scheme = "tls" if self.config.listen.tls_certificate else "tcp"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    async def _serve(
        self, sockets: list[tuple[str, socket.socket]], ready: Callable[[], None], storage: Storage | None
    ) -> BaseException | None:
        daemon = Daemon(
            self.config,
            sockets,
            activated=bool(self._activated),
            tokens=self._tokens,
            tls=self._tls,
            read_config=self._read_config,
            read_tokens=read_tokens,
            contents=self._contents,
            fence=self._fence,
            storage=storage,
            http=self._http,
        )
        await daemon.run(ready)
        return daemon.failure


def _working_directory() -> str:
    """The directory where relative paths start; empty if it has been removed."""
    try:
        return os.getcwd()
    except OSError:
        return ""


def _say_started() -> None:
    # Not print: at exit Python writes once more what print could not write, and the exit code becomes 120.
    try:
        os.write(1, b"Kvd started. Press ctrl-c to stop.\n")
    except OSError:
        pass  # stdout has no reader, which is no reason not to serve
