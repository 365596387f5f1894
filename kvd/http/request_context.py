"""One HTTP request while it is answered: the daemon requests that it runs, and what its answer waits for."""

from typing import Any

from kvd.http.problems import problem_of
from kvd.http.requests import Request
from kvd.protocol.messages import AnyRequest
from kvd.requests.executor import Executor
from kvd.requests.needs import NO_WAIT
from kvd.requests.peer import Peer


class RetryLater(Exception):
    """Too many keys must expire first for one turn of the loop; nothing was done, so run the request again later."""


class RequestContext:
    """A request that the executor runs in one step of the loop. ``position``: what its answer waits for."""

    __slots__ = ("executor", "peer", "position", "request")

    def __init__(self, executor: Executor, request: Request, peer: Peer) -> None:
        self.executor = executor
        self.request = request
        self.peer = peer
        self.position = NO_WAIT

    def ask(self, request: AnyRequest) -> Any:  # noqa: ANN401 - the reply to any request
        """Return the reply to one request of the protocol. Raises Problem for an error, and RetryLater."""
        reply = self.try_ask(request)
        if type(reply) is dict:
            raise problem_of(reply)
        return reply

    def try_ask(self, request: AnyRequest) -> Any:  # noqa: ANN401
        """As ``ask``, but return an error as its map."""
        result = self.executor.ask(request, self.peer)
        if result is None:
            raise RetryLater
        reply, position = result
        if position is not NO_WAIT:
            self.position = self.position.add(position)
        return reply
