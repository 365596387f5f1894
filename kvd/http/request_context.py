"""One request being answered: how it asks the daemon's own commands, and what its answer has to wait for."""

from typing import Any

from kvd.engine.durability import NO_WAIT
from kvd.http.problems import problem_of
from kvd.http.requests import Request
from kvd.protocol.messages import AnyRequest
from kvd.requests.executor import Commands
from kvd.server.peers import Peer


class RetryLater(Exception):
    """So much has to expire first that it takes more than this turn of the loop; nothing was done. Ask again."""


class Call:
    """A request on its way through the commands, as one step of the loop. ``needs``: as ``Commands.needs``."""

    __slots__ = ("commands", "needs", "peer", "request")

    def __init__(self, commands: Commands, request: Request, peer: Peer) -> None:
        self.commands = commands
        self.request = request
        self.peer = peer
        self.needs = NO_WAIT

    def ask(self, request: AnyRequest) -> Any:  # noqa: ANN401 - whatever that request answers
        """The reply to one request of the protocol. Raises Problem for an error, and Later."""
        reply = self.try_ask(request)
        if type(reply) is dict:
            raise problem_of(reply)
        return reply

    def try_ask(self, request: AnyRequest) -> Any:  # noqa: ANN401
        """The same; an error is a map."""
        commands = self.commands
        commands.before_others()
        if not commands.may_run((request,)):
            raise RetryLater
        (reply,), _ = commands.run_counting((request,), self.peer, commands.limits.max_reply_bytes)
        if commands.needs is not NO_WAIT:
            self.needs = self.needs.add(commands.needs)
        return reply
