"""Who may ask over HTTP, and by which name of this host.

A Unix socket knows its peers. On TCP a request shows a token of the token file (``Authorization: Bearer``), or its
connection a certificate, or the listener is open, on loopback. A web page of somebody's must not reach a daemon through
a browser that may: so the Host has to be one of ours (DNS rebinding), a foreign Origin is refused, and nothing ever
permits one (no CORS).
"""

import logging
from collections.abc import Iterable

from kvd.http.problems import Problem
from kvd.http.requests import Request
from kvd.requests.executor import Commands
from kvd.server.peers import Peer

logger = logging.getLogger(__name__)

_LOCAL = ("localhost", "127.0.0.1", "[::1]")


class HttpAuth:
    """What all connections are measured by."""

    def __init__(self, commands: Commands, hosts: Iterable[str]) -> None:
        self._commands = commands
        self._hosts = {_name(host.encode()) for host in (*_LOCAL, *hosts)}

    def check_host(self, request: Request) -> None:
        """Raise Problem unless the request is meant for us, and comes from no foreign page."""
        host = request.headers.get(b"host")
        if host is None:
            if request.is_http10:
                return
            raise Problem(400, "bad_request", "a request has to say its Host")
        if _name(host) not in self._hosts:
            raise Problem(421, "misdirected", "this Host is none of the daemon's names; see hosts in [http]")
        origin = request.headers.get(b"origin")
        if origin is not None and origin.partition(b"://")[2].lower() != host.lower():
            raise Problem(403, "forbidden", "no page of another origin may ask")

    def peer_of(self, request: Request, connected: Peer) -> Peer:
        """Who asks: whom the connection belongs to, or the holder of a token. Raises Problem."""
        shown = request.headers.get(b"authorization")
        if shown is None or connected.uid is not None:
            if connected.greeted:
                return connected
            raise unauthenticated("show a token: Authorization: Bearer TOKEN")
        scheme, _, given = shown.partition(b" ")
        token = self._commands.match_token(given.strip()) if scheme.lower() == b"bearer" else None
        if token is None:
            logger.warning("refused %s: wrong token", connected.name)
            raise unauthenticated("wrong token")
        peer = Peer(connected.name, None)
        self._commands.authenticate(peer, token)
        return peer


def unauthenticated(detail: str) -> Problem:
    """Who asks has to show a token."""
    return Problem(401, "unauthenticated", detail, b'WWW-Authenticate: Bearer realm="kvd"\r\n')


def _name(host: bytes) -> bytes:
    """A Host without its port."""
    host = host.lower()
    if host.startswith(b"["):
        return host.partition(b"]")[0] + b"]"
    return host.partition(b":")[0].rstrip(b".")
