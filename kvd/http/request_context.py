"""One HTTP request while it is answered: the daemon requests that it runs, and what its answer waits for."""

from typing import Any

from kvd.http.problems import problem_of
from kvd.http.requests import Request
from kvd.protocol.messages import AnyRequest
from kvd.requests.executor import Executor
from kvd.requests.needs import NO_WAIT
from kvd.requests.peer import Peer
from kvd.requests.turns import Steps


class RequestContext:
    """A request that the executor runs in steps. ``position``: what its answer waits for."""

    __slots__ = ("executor", "peer", "position", "request")

    def __init__(self, executor: Executor, request: Request, peer: Peer) -> None:
        self.executor = executor
        self.request = request
        self.peer = peer
        self.position = NO_WAIT

    def ask(self, request: AnyRequest) -> Steps[Any]:
        """Return the reply to one request of the protocol. Raises Problem for an error."""
        reply = yield from self.try_ask(request)
        if type(reply) is dict:
            raise problem_of(reply)
        return reply

    def try_ask(self, request: AnyRequest) -> Steps[Any]:
        """As ``ask``, but return an error as its map."""
        reply, position = yield from self.executor.ask(request, self.peer)
        if position is not NO_WAIT:
            self.position = self.position.add(position)
        return reply
