"""The load of one process over its connections. Each sends a frame, waits for its reply, sends the next (closed loop).

The latency of a request is that of its frame: from before it is sent until its reply is there. One thread serves all
connections, so the latency contains the wait for that thread: the cost of the clients is measured, too.
"""

import os
import select
import time

from kv.blocking.stream import Deadline, open_stream
from kv.cli.bench.choices import Choices
from kv.cli.bench.tally import Tally
from kv.errors import Unavailable, from_reply
from kv.settings import read_token
from kv.wire.codecs import full
from kv.wire.operations import hello
from kv.wire.protocol import FrameReader
from kvd.protocol import frame
from kvd.protocol.address import is_network

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from kv.blocking.stream import Stream
    from kv.cli.bench.plan import Plan
    from kv.wire.codecs import Codec

_READ_BYTES = 256 * 1024
_EVENTS = 256


class LoadConnection:
    """One connection, with at most one frame under way."""

    __slots__ = ("_frames", "descriptor", "operations", "sent_ns")

    def __init__(self, stream: "Stream") -> None:
        self.descriptor, _ = stream.detach()
        os.set_blocking(self.descriptor, True)  # a frame may be larger than the socket's buffer
        self._frames = FrameReader()
        self.operations: list[str] = []  # of the frame under way
        self.sent_ns = 0

    def send(self, data: bytes) -> None:
        """Send a frame. This may wait for the socket's buffer, because the daemon reads all of it before it answers."""
        self.sent_ns = time.perf_counter_ns()
        left = memoryview(data)
        while left:
            left = left[os.write(self.descriptor, left) :]

    def receive(self) -> bytes | None:
        """Read; return the payload of the reply once it is complete. Raises OSError, EOFError."""
        data = os.read(self.descriptor, _READ_BYTES)
        if not data:
            raise EOFError
        payloads: list[bytes] = []
        self._frames.receive(data, payloads)
        return payloads[0] if payloads else None

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.descriptor)


class WireLoad:
    """All connections of one worker process."""

    def __init__(self, plan: "Plan", prefix: str, process: int, stop_descriptor: int) -> None:
        self._plan = plan
        self._codec = full()
        self._choices = Choices(plan, prefix, process)
        self._poll = select.epoll()
        self._connections: dict[int, LoadConnection] = {}
        self._stop_descriptor = stop_descriptor
        self._left = None if plan.requests is None else plan.share(plan.requests, process)
        self._end = float("inf")
        self.tally = Tally()
        for _ in range(plan.share(plan.connections, process)):
            connection = LoadConnection(_connected(plan, self._codec))
            self._connections[connection.descriptor] = connection
            self._poll.register(connection.descriptor, select.EPOLLIN)

    def run(self, progress: "Callable[[int], None]") -> None:
        """Send requests until all are done, time is up, or the parent stops or is gone. Raises KvdError."""
        self._poll.register(self._stop_descriptor, select.EPOLLIN)
        if self._plan.duration_s is not None:
            self._end = time.monotonic() + self._plan.duration_s
        try:
            self._loop(progress)
        except (OSError, EOFError):
            raise Unavailable("the daemon closed a connection during the benchmark", []) from None

    def _loop(self, progress: "Callable[[int], None]") -> None:
        under_way = 0
        for connection in self._connections.values():
            under_way += self._send_next(connection)
        while under_way:
            for connection in self._answered():
                self._receive(connection)
                under_way -= not self._send_next(connection)
            progress(self.tally.done)

    def _answered(self) -> "Iterator[LoadConnection]":
        """Yield the connections that have something to read. Raises Unavailable."""
        events = self._poll.poll(self._plan.timeout_s, _EVENTS)
        if not events:
            raise Unavailable(f"no answer from the daemon within {self._plan.timeout_s:g} seconds", [])
        for descriptor, _ in events:
            if descriptor == self._stop_descriptor:
                self._poll.unregister(descriptor)
                self._left = 0  # frames under way are still awaited, so that no write happens after the end
            else:
                yield self._connections[descriptor]

    def _send_next(self, connection: LoadConnection) -> bool:
        """Send the next frame; return whether one is under way."""
        count = self._plan.pipeline if self._left is None else min(self._plan.pipeline, self._left)
        if not count or connection.operations or time.monotonic() >= self._end:
            return bool(connection.operations)
        if self._left is not None:
            self._left -= count
        choices = self._choices
        connection.operations = [choices.operation() for _ in range(count)]
        requests = [choices.request(operation) for operation in connection.operations]
        connection.send(frame(self._codec.encode(requests)))
        return True

    def _receive(self, connection: LoadConnection) -> None:
        """Count the replies of a frame, if all of them are there."""
        payload = connection.receive()
        if payload is None:
            return
        self.tally.histogram.record(time.perf_counter_ns() - connection.sent_ns, len(connection.operations))
        replies: Any = self._codec.decode(payload)
        if isinstance(replies, dict):
            self._refused(replies, len(connection.operations))
        else:
            self._count(connection.operations, replies)
        connection.operations = []

    def _count(self, operations: list[str], replies: "list[Any]") -> None:
        for operation, reply in zip(operations, replies, strict=True):
            if type(reply) is dict:
                self.tally.failed(reply["error"])
            else:
                self.tally.succeeded(operation)

    def _refused(self, reply: "dict[str, Any]", requests: int) -> None:
        if reply["error"] == "shutting_down":
            raise Unavailable("the daemon was stopped during the benchmark", [])
        self.tally.failed(reply["error"], requests)

    def close(self) -> None:
        """Close all connections."""
        for connection in self._connections.values():
            connection.close()
        self._poll.close()


def _connected(plan: "Plan", codec: "Codec") -> "Stream":
    """Return a connection after the hello. Raises KvdError."""
    deadline = Deadline(plan.timeout_s)
    stream = open_stream(plan.address, deadline)
    token = read_token(plan.token_file, plan.timeout_s) if is_network(stream.address) else None
    try:
        stream.send(frame(codec.encode([hello("kv bench", token).request])), deadline)
        payload = stream.receive_frame(deadline)
    except TimeoutError:
        raise Unavailable(f"no answer from {stream.address} in time", [stream.address]) from None
    except (OSError, EOFError):
        raise Unavailable(f"{stream.address} closed the connection", [stream.address]) from None
    reply: Any = codec.decode(payload)
    refusal = reply if isinstance(reply, dict) else reply[0]
    if isinstance(refusal, dict):
        raise from_reply(refusal)
    return stream
