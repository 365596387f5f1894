"""Who may send requests over HTTP, and under which name of this host.

On a Unix socket the kernel identifies the peer. On TCP a request shows a token of the token file (``Authorization:
Bearer``), or its connection shows a certificate, or the listener is open, on loopback. A foreign web page must not
reach the daemon through the browser of a user who has the right. So the Host must be one of ours (DNS rebinding), a
foreign Origin is refused, and no reply ever permits one (no CORS).
"""

import logging
from collections.abc import Iterable

from kvd.http.problems import Problem
from kvd.http.requests import Request
from kvd.requests.authentication import Authentication
from kvd.requests.peer import Peer

logger = logging.getLogger(__name__)

_LOCAL = ("localhost", "127.0.0.1", "[::1]")


class HttpAuth:
    """Admits or refuses the requests of all HTTP connections."""

    def __init__(self, authentication: Authentication, hosts: Iterable[str]) -> None:
        self._authentication = authentication
        self._hosts = {_name(host.encode()) for host in (*_LOCAL, *hosts)}

    def check_host(self, request: Request) -> None:
        """Raise Problem unless the request names this daemon as its Host and comes from no foreign page."""
        host = request.headers.get(b"host")
        if host is None:
            if request.is_http10:
                return
            raise Problem(400, "bad_request", "a request must have a Host header")
        if _name(host) not in self._hosts:
            raise Problem(421, "misdirected", "the Host header does not name this daemon; see hosts in [http]")
        origin = request.headers.get(b"origin")
        is_foreign = origin is not None and origin.lower() not in (
            b"http://" + host.lower(),
            b"https://" + host.lower(),
        )
        # A browser says so of requests that carry no Origin, such as those for an image.
        if is_foreign or request.headers.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin"):
            raise Problem(403, "forbidden", "requests from a page of another origin are refused")

    def peer_of(self, request: Request, connected: Peer) -> Peer:
        """Return the peer of a request: its connection's, or the holder of the token that it shows. Raises Problem."""
        header = request.headers.get(b"authorization")
        if header is None or connected.uid is not None:
            if connected.is_authenticated:
                return connected
            raise unauthenticated("show a token: Authorization: Bearer TOKEN")
        scheme, _, token_text = header.partition(b" ")
        token = self._authentication.match_token(token_text.strip()) if scheme.lower() == b"bearer" else None
        if token is None:
            logger.warning("refused %s: wrong token", connected.name)
            raise unauthenticated("wrong token")
        peer = Peer(connected.name, None)
        self._authentication.authenticate(peer, token)
        return peer


def unauthenticated(detail: str) -> Problem:
    """Return the answer to a request that must show a token."""
    return Problem(401, "unauthenticated", detail, b'WWW-Authenticate: Bearer realm="kvd"\r\n')


def _name(host: bytes) -> bytes:
    """Return a Host without its port; b"" if what follows the name is no port."""
    host = host.lower()
    if host.startswith(b"["):
        name, bracket, rest = host.partition(b"]")
        name += bracket
    else:
        name, colon, rest = host.partition(b":")
        name, rest = name.rstrip(b"."), colon + rest
    return name if not rest or (rest.startswith(b":") and (rest[1:] or b"0").isdigit()) else b""
