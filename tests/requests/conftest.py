"""Two ends joined in memory: what a client sends, through decoder, commands and encoder, to what it gets."""

import copy
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from kvd.engine.database import Database
from kvd.protocol.errors import CODES
from kvd.protocol.limits import Limits
from kvd.protocol.messages import DECODE_ERRORS, decode_batch, encode_replies
from kvd.requests.errors import RequestError, error_reply
from kvd.requests.executor import Administration, Commands
from kvd.requests.sliced import replies_in_slices, run_in_slices
from kvd.server.peers import Peer
from kvd.store.window import WindowLimits
from tests.engine.schedulers import ListScheduler

# An error message ends here, and says so.
MAX_MESSAGE = 300 + len("…")


class Process(Administration):
    """Stands for the process around the server."""

    def __init__(self) -> None:
        self.stopping = False

    def status(self) -> list[tuple[str, str | int]]:
        return [("version", "1"), ("connections", 2)]

    def reload(self) -> list[str]:
        raise RequestError("bad_request", "kvd.toml, line 3: no such key")

    def shutdown(self) -> int:
        self.stopping = True
        return 4711


class Clock:
    """Microseconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 10**9

    def __call__(self) -> int:
        return self.now


class Ends:
    """One connection to a database of its own. Commits are a microsecond apart; deadlines go by ``timer``."""

    def __init__(
        self, limits: Limits | None = None, *, token: str | None = None, uid: int | None = os.geteuid(), **window: int
    ) -> None:
        ticks = itertools.count(1_000_000)
        self.timer = Clock()
        self.scheduler = ListScheduler()
        self.database = Database(
            WindowLimits(**window), clock=lambda: next(ticks), timer=self.timer, scheduler=self.scheduler
        )
        self.process = Process()
        self.commands = Commands(self.database, limits or Limits(), self.process, {token: None} if token else {})
        self.peer = Peer("test", uid)

    def another(self, uid: int | None = os.geteuid()) -> "Ends":
        """Another connection to the same database."""
        other = copy.copy(self)
        other.peer = Peer("another", uid)
        return other

    def disconnect(self) -> None:
        """The connection ends."""
        self.commands.forget(self.peer)

    def frame(self, payload: bytes) -> Any:  # noqa: ANN401
        """The reply to a frame's payload, as the client decodes it."""
        try:
            requests = decode_batch(payload)
        except DECODE_ERRORS as error:
            return msgspec.msgpack.decode(encode_replies(error_reply("bad_request", str(error))))
        replies = self.commands.run(requests, self.peer, len(payload))
        if replies is None:  # as the session does
            return checked(joined(run_in_slices(self.commands, [requests], len(requests), self.peer)), len(requests))
        reply = msgspec.msgpack.decode(encode_replies(replies))
        return reply if isinstance(reply, dict) else checked(reply, len(requests))

    def sliced(self, payload: bytes) -> Any:  # noqa: ANN401
        """The same by the way of large frames."""
        return joined(replies_in_slices(self.commands, memoryview(payload), self.peer))

    def batch(self, *requests: list[object]) -> list[Any]:
        """The replies to a frame of these requests."""
        replies: list[Any] = self.frame(msgspec.msgpack.encode(requests))
        assert isinstance(replies, list), replies
        return replies

    def ask(self, *request: object) -> Any:  # noqa: ANN401
        """The reply to one request, alone in its frame."""
        return self.batch(list(request))[0]

    def code(self, *request: object) -> str:
        """The code with which one request is refused; "" if it is not."""
        reply = self.ask(*request)
        return str(reply["error"]) if isinstance(reply, dict) else ""

    def metric(self, name: str) -> int:
        return dict(self.database.metrics())[name]


def joined(work: Iterator[list[bytes] | None]) -> Any:  # noqa: ANN401
    """The reply to a frame that is run in slices."""
    *slices, pieces = work
    assert slices
    assert set(slices) == {None}
    assert pieces is not None
    frame = b"".join(pieces)
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4
    return msgspec.msgpack.decode(frame[4:])


def checked(replies: list[Any], count: int) -> list[Any]:
    """What holds for every reply frame: a reply for each request, and errors of the documented form."""
    assert isinstance(replies, list)
    assert len(replies) == count
    for reply in replies:
        if isinstance(reply, dict):
            assert reply["error"] in CODES
            assert isinstance(reply["message"], str)
            assert 0 < len(reply["message"]) <= MAX_MESSAGE
    return replies


@pytest.fixture
def ends() -> Ends:
    """A connection over the Unix socket, of the daemon's own user."""
    return Ends()


@pytest.fixture(scope="session")
def make_ends() -> Callable[..., Ends]:
    """Makes connections with other limits, tokens, users."""
    return Ends


@pytest.fixture
def quiet_loggers(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What the server writes to its logging."""
    with caplog.at_level("INFO"):
        yield caplog
