"""What all HTTP connections share: the routes, the authentication, and the function that answers a request."""

import logging
from collections.abc import Callable, Iterable
from typing import Any

from kvd.http import v1, v2
from kvd.http.admission import HttpAuth, unauthenticated
from kvd.http.openapi import document_route
from kvd.http.problems import Problem
from kvd.http.request_context import RequestContext
from kvd.http.requests import Request
from kvd.http.responses import Dates, Response, error_response
from kvd.requests.needs import NO_WAIT, LogPosition
from kvd.requests.peer import Peer
from kvd.requests.turns import Steps
from kvd.server.feed_writer import EventSource
from kvd.server.server import Server

logger = logging.getLogger(__name__)

Answer = Response | EventSource
Route = Callable[[RequestContext], Response | Steps[Any]]

ROUTES: dict[bytes, Route] = {
    b"/v1": v1.bulk_route,
    b"/v1/": v1.bulk_route,
    b"/status": v1.status_route,
    b"/metrics": v1.metrics_route,
    b"/metrics/prometheus": v1.prometheus_route,
    b"/openapi.json": document_route,
    **v2.ROUTES,
}
V1, V2 = b"/v1/", b"/v2/"


class Listener:
    """The HTTP side of a server.

    ``is_open``: requests on TCP need not authenticate. ``max_json_bytes``: the limit of a body that is not a value.
    """

    def __init__(self, server: Server, *, hosts: Iterable[str], is_open: bool, max_json_bytes: int) -> None:
        self.server = server
        self.executor = server.executor
        self.is_open = is_open
        self.dates = Dates()
        self._max_json_bytes = max_json_bytes
        self._admission = HttpAuth(server.authentication, hosts)

    def check(self, request: Request, connected: Peer, *, is_local: bool) -> Peer:
        """Return the sender of a request, before its body is read. ``is_local``: over a Unix socket. Raises Problem."""
        if not is_local:
            self._admission.check_host(request)
        return self._admission.peer_of(request, connected)

    def max_body_bytes(self, request: Request) -> int:
        """Return the maximum length of the body of a request."""
        is_value = request.method == "PUT" and request.path not in (b"/v1", b"/v1/")
        return self.executor.limits.max_value_bytes if is_value else self._max_json_bytes

    def answer(self, request: Request, peer: Peer) -> Steps[tuple[Answer, LogPosition]]:
        """Run a request in steps. Return its answer, and what the answer waits for."""
        if request.refusal is not None:
            return error_response(request, request.refusal), NO_WAIT
        if not self.server.authentication.token_is_valid(peer):  # because of a reload after its head had arrived
            return error_response(request, unauthenticated("this token is no longer valid")), NO_WAIT
        context = RequestContext(self.executor, request, peer)
        try:
            answer = _route(request)(context)
            if not isinstance(answer, Response):
                answer = yield from answer
            return answer, context.position
        except Problem as problem:
            return error_response(request, problem), context.position
        except Exception:
            logger.exception("internal error in %s of %s", request.method, peer.name)
            return error_response(request, Problem(500, "internal", "a fault in the server")), context.position


def _route(request: Request) -> Route:
    path = request.path
    route = ROUTES.get(path)
    if route is not None:
        return route
    if path.startswith(V1):
        return v1.key_route
    if path.startswith(v2.KEY_PREFIX):
        return v2.key_route
    if path.startswith(V2):
        raise Problem(404, "not_found", "there is no such route; /openapi.json lists all routes")
    raise Problem(404, "not_found", "404 page not found")
