"""The daemon's optional HTTP listener: its sockets, and whether its parser is installed."""

import logging
import socket
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING

from kvd.protocol.address import parse_host_port
from kvd.service import systemd
from kvd.service.config.checks import is_path
from kvd.service.config.sections import Config
from kvd.service.errors import ConfigError
from kvd.service.unix_socket import bind_unix_socket, remove_socket, socket_inode

if TYPE_CHECKING:
    from kvd.server.server import Server

logger = logging.getLogger(__name__)

# FileDescriptorName= of the sockets that a service manager passes for HTTP.
PASSED_NAME = "http"
GOODBYE = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\nContent-Type: text/plain\r\n"
    b"Content-Length: 37\r\n\r\nthe server is stopping; nothing ran\r\n"
)


def check_installed() -> None:
    """Raise ConfigError if the packages of kvd[http] are missing."""
    try:
        import kvd.http.session  # noqa: F401
    except ImportError as error:
        text = f"http.listen: HTTP needs a package that is not installed ({error}): pip install 'kvd[http]'"
        raise ConfigError(text) from None


class HttpSockets:
    """The sockets for HTTP, each with its address in words. The service manager opened those in ``passed``.

    Raises ConfigError if a package is missing, or an option has no effect.
    """

    def __init__(self, config: Config, passed: list[socket.socket]) -> None:
        if passed or config.http.listen:
            check_installed()
        elif config.http.open:
            text = f"http.open: it has no effect without http.listen or a passed socket called {PASSED_NAME}"
            raise ConfigError(text)
        self._config = config
        self.passed = passed
        self._inodes: list[tuple[str, tuple[int, int]]] = []
        self.sockets: list[tuple[str, socket.socket]] = []

    def bind(self, bind_tcp: Callable[[str], socket.socket]) -> None:
        """Listen at every configured address. Raises StartError."""
        for address in self._config.http.listen:
            if is_path(address):
                self.sockets.append((f"http+unix://{address}", self._bind_unix(address)))
            else:
                self._add(bind_tcp(address))
        for listening in self.passed:
            self._add(listening)

    def _add(self, listening: socket.socket) -> None:
        if listening.family == socket.AF_UNIX:
            self.sockets.append((f"http+unix://{systemd.path_of(listening)}", listening))
            return
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        self.sockets.append((f"{'https' if self._is_tls else 'http'}://{shown}:{port}", listening))

    def _bind_unix(self, path: str) -> socket.socket:
        listen = self._config.listen
        listening = bind_unix_socket(path, int(listen.socket_mode, 8), listen.socket_group)
        inode = socket_inode(path)
        if inode is not None:
            self._inodes.append((path, inode))
        return listening

    @property
    def own(self) -> list[tuple[str, socket.socket]]:
        """The sockets that we opened. No process will serve their queues after us."""
        return [each for each in self.sockets if each[1] not in self.passed]

    @property
    def _is_tls(self) -> bool:
        return bool(self._config.listen.tls_certificate) and not self._config.http.open

    async def serve(self, server: "Server", tls: ssl.SSLContext | None) -> None:
        """Accept connections to ``server``, with ``tls`` on TCP."""
        if not self.sockets:
            return
        from kvd.http.listener import Listener
        from kvd.http.session import HttpSession

        http = self._config.http
        hosts = {parse_host_port(each)[0] for each in http.listen if not is_path(each)}
        hosts |= {listening.getsockname()[0] for _, listening in self.sockets if listening.family != socket.AF_UNIX}
        shown = [f"[{host}]" if ":" in host else host for host in hosts]
        listener = Listener(server, hosts=[*shown, *http.hosts], is_open=http.open, max_json_bytes=http.max_json_bytes)
        if http.open:
            logger.warning("HTTP is open: any user of this host may read and write every key (http.open)")
        for _, listening in self.sockets:
            context = tls if self._is_tls else None
            own = listening not in self.passed
            await server.listen(listening, lambda: HttpSession(listener), own=own, goodbye=GOODBYE, tls=context)

    def close(self) -> None:
        """Remove our Unix sockets, unless another process's socket has taken their place."""
        for path, inode in self._inodes:
            remove_socket(path, inode)
