"""``kv serve``: from the configuration to a running daemon, in the foreground or detached.

Whatever can go wrong for a reason the caller can mend (configuration, lock, socket) goes wrong here, with a line on
stderr and an exit code, before the daemon says it is ready.
"""

import asyncio
import errno
import ipaddress
import logging
import os
import socket
import sys
from collections.abc import Callable, Mapping

import msgspec

from kvd.engine.replay import Replay
from kvd.protocol.address import parse_host_port
from kvd.protocol.frames import frame
from kvd.service import logs, systemd
from kvd.service.config import Config, ConfigError, load
from kvd.service.daemon import daemonize, ensure_standard_fds
from kvd.service.errors import EXIT_CONFIGURATION, EXIT_FAILURE, EXIT_IO_ERROR, StartError
from kvd.service.http import PASSED_NAME, HttpSockets, check_installed
from kvd.service.locks import LockFile
from kvd.service.process import Daemon
from kvd.service.restart_fence import RestartFence
from kvd.service.storage import Bar, DataDirectory, NullProgress, Storage
from kvd.service.tls import server_context
from kvd.service.unix_socket import BACKLOG, bind_unix_socket, make_directory, remove_socket, socket_inode
from kvd.service.wiring import window_limits

MAX_TOKEN_BYTES = 4096
MAX_TOKENS_BYTES = 1024 * 1024
LOCK_SUFFIX = ".lock"
PING_TIMEOUT_S = 5.0


def serve(
    flags: Mapping[str, object], config_file: str | None, *, daemon: bool, bar: Callable[[], Bar] = NullProgress
) -> int:
    """Run a daemon; the exit code. With ``daemon``, return 0 as soon as a detached one accepts connections.

    ``bar`` gives what shows the person how far the recovery of a data directory is.
    """
    ensure_standard_fds()
    try:
        return _Start(flags, config_file, daemon=daemon, bar=bar).run()
    except ConfigError as error:
        return _complain(str(error), EXIT_CONFIGURATION)
    except StartError as error:
        return _complain(error.text, error.exit_code)


def check_config(flags: Mapping[str, object], config_file: str | None) -> int:
    """Say whether a daemon could start with this configuration, as far as the configuration decides it."""
    try:
        config = load(flags, os.environ, config_file)
        _read_tokens(config)
        server_context(config.listen)
        if config.http.listen:
            check_installed()
    except ConfigError as error:
        return _complain(str(error), EXIT_CONFIGURATION)
    return 0


def _complain(text: str, exit_code: int) -> int:
    print(f"kv: error: {text}", file=sys.stderr, flush=True)
    return exit_code


def _read_tokens(config: Config) -> dict[str, str | None]:
    """The tokens of the token file, and whose each is: lines of NAME TOKEN, or one token alone. Raises ConfigError."""
    path = config.listen.token_file
    if not path:
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            content = file.read(MAX_TOKENS_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"listen.token_file: cannot read {path}: {error}") from None
    if len(content) > MAX_TOKENS_BYTES:
        raise ConfigError(f"listen.token_file: {path} has to hold {MAX_TOKENS_BYTES} characters at most")
    lines = [line.split() for line in content.splitlines() if line.strip()]
    tokens: dict[str, str | None] = {}
    for words in lines:
        name, token = (None, words[0]) if len(words) == 1 else (words[0], words[1])
        if name is not None and name.startswith("#"):  # whoever means to take a token away so shall not keep it
            raise ConfigError(f"listen.token_file: {path} has to hold no comments: remove the line of {name!r}")
        if len(words) > 2 or (name is None and len(lines) > 1) or not 16 <= len(token) <= MAX_TOKEN_BYTES:
            tokens = {}
            break
        tokens[token] = name
    if not tokens or len(tokens) < len(lines):
        text = f"a token of 16 to {MAX_TOKEN_BYTES} characters, or lines of a name and such a token, all different"
        raise ConfigError(f"listen.token_file: {path} has to hold {text}")
    return tokens


class _Start:
    """One start: what was read and locked in the foreground, and what the daemon's own process does with it."""

    def __init__(
        self, flags: Mapping[str, object], config_file: str | None, *, daemon: bool, bar: Callable[[], Bar]
    ) -> None:
        # As they are now: a reload reads the same sources, from another directory.
        self._flags = flags
        self._config_file = config_file
        self._environ = dict(os.environ)
        self._directory = _working_directory()
        self._is_daemon = daemon
        self._bar = bar
        self.config = self._read_config()
        self._contents = Replay(window_limits(self.config.history))
        self._data: DataDirectory | None = None
        self._tokens = _read_tokens(self.config)
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
        """The mode of a directory that has to be made for the socket; in it, the socket's own mode decides.

        A user's own is closed. But others have to get through it to a socket that is open to them; and root's, in
        /run, may have to hold the socket unit's one day.
        """
        shared = os.getuid() == 0 or int(self.config.listen.socket_mode, 8) & 0o077
        return 0o755 if shared else 0o700

    def run(self) -> int:
        """Lock, then run in this process or a detached one."""
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
        """In the foreground: whoever starts a second daemon on a data directory shall be told at once."""
        if self.config.data.dir:
            self._data = DataDirectory(self.config.data, self._contents)
            self._data.lock()

    def _run_detached(self, lock: LockFile, handler: logging.Handler) -> int:
        passed = (*self._activated, *self._http.passed)
        preserve = [*logs.descriptors(handler), *(listening.fileno() for listening in passed)]
        return daemonize(
            lambda readiness: self._run_process(handler, readiness.ready),
            lock=lock,
            preserve=preserve,
            further_locks=[] if self._data is None else [self._data.lock_file],
            confirm=lambda: ping(self._socket_path),
        )

    def _run_process(self, handler: logging.Handler, ready: Callable[[], None]) -> int:
        """The process that serves: opens its sockets, runs the loop to its end, removes its socket."""
        import uvloop

        logs.start(handler, self.config)
        storage = None if self._data is None else self._data.open(self._bar)
        own = [] if self._activated else [self._bind_unix()]
        inode = socket_inode(self._socket_path)
        try:
            tcp = [tcp_socket(address) for address in self.config.listen.tcp]
            sockets = [*self._activated, *own, *tcp]
            self._refuse_open_tcp(sockets)
            self._http.bind(tcp_socket)
            self._refuse_open_tcp([listening for _, listening in self._http.sockets], is_open=self.config.http.open)
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                addressed = [(self._address(each), each) for each in sockets]
                failure = runner.run(self._serve(addressed, ready, storage))
        finally:
            self._http.close()
            if own and inode is not None:
                remove_socket(self._socket_path, inode)
        return EXIT_IO_ERROR if failure else 0

    def _address(self, listening: socket.socket) -> str:
        """A listening socket's address as a client would name it; our own was bound under another name."""
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
            read_tokens=_read_tokens,
            contents=self._contents,
            fence=self._fence,
            storage=storage,
            http=self._http,
        )
        await daemon.run(ready)
        return daemon.failure

    def _bind_unix(self) -> socket.socket:
        listen = self.config.listen
        return bind_unix_socket(self._socket_path, int(listen.socket_mode, 8), listen.socket_group)

    def _refuse_open_tcp(self, sockets: list[socket.socket], *, is_open: bool = False) -> None:
        """No TCP socket that lets in whom it does not know, and none beyond loopback without TLS, whoever opened it.

        ``is_open``: with http.open, whom it does not know either, but on loopback alone.
        """
        listen = self.config.listen
        for listening in sockets:
            if listening.family == socket.AF_UNIX:
                continue
            address = listening.getsockname()[0]
            on_loopback = ipaddress.ip_address(address).is_loopback
            why = ""
            if is_open:
                why = "" if on_loopback else ": http.open is for loopback alone"
            elif not self._tokens and not listen.tls_client_ca:
                why = " needs listen.token_file"
            elif not listen.tls_certificate and not on_loopback:
                why = ": beyond loopback only with TLS: set listen.tls_certificate"
            if why:
                raise StartError(EXIT_CONFIGURATION, f"listening on tcp {address}{why}")


def _working_directory() -> str:
    """Where relative paths begin; empty if that directory has been removed."""
    try:
        return os.getcwd()
    except OSError:
        return ""


def tcp_socket(address: str) -> socket.socket:
    """A listening TCP socket at ``HOST:PORT``. Raises StartError."""
    host, port = parse_host_port(address)
    listening = None
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(place)
        listening.listen(BACKLOG)
        listening.setblocking(False)
    except OSError as error:
        if listening is not None:
            listening.close()
        text = f"cannot listen on tcp {address}: {error.strerror}"
        if error.errno == errno.EAFNOSUPPORT and "INVOCATION_ID" in os.environ:
            text += "; this unit lets kvd open no network: add ListenStream= to kvd.socket instead"
        raise StartError(EXIT_IO_ERROR, text) from None
    return listening


def ping(path: str) -> None:
    """Ask the daemon at ``path`` for a sign of life. Raises StartError."""
    request = frame(msgspec.msgpack.encode([["ping"]]))
    expected = frame(msgspec.msgpack.encode([True]))
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
            asking.settimeout(PING_TIMEOUT_S)
            asking.connect(path)
            asking.sendall(request)
            answer = asking.recv(len(expected), socket.MSG_WAITALL)
    except OSError as error:
        raise StartError(EXIT_FAILURE, f"the daemon does not answer at {path}: {error}") from None
    if answer != expected:
        raise StartError(EXIT_FAILURE, f"the daemon does not answer at {path} as it should")


def _say_started() -> None:
    # Not print: what it could not write would be tried once more at the end, and make the exit code 120.
    try:
        os.write(1, b"Kvd started. Press ctrl-c to stop.\n")
    except OSError:
        pass  # nobody reads; that is no reason not to serve
