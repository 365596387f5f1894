"""The work of one process over its connections: each sends a frame, waits for its answer, sends the next (closed loop).

The latency of a request is that of its frame, from before it is sent until its answer is there. One thread serves all
connections, so it contains the wait for this process's own turn: what the clients cost is measured too.
"""

import os
import select
import time

from kv.api.settings import read_token
from kv.blocking.stream import Deadline, open_stream
from kv.cli.bench.choices import Choices
from kv.cli.bench.tally import Tally
from kv.errors import Unavailable, from_reply
from kv.wire.codecs import full
from kv.wire.operations import hello
from kv.wire.protocol import FrameReader
from kvd.protocol.address import is_network
from kvd.protocol.frames import frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from kv.blocking.stream import Stream
    from kv.cli.bench.plan import Plan
    from kv.wire.codecs import Codec

_READ_BYTES = 256 * 1024
_EVENTS = 256


class Line:
    """One connection: at most one frame of it is under way."""

    __slots__ = ("_frames", "began_ns", "descriptor", "operations")

    def __init__(self, stream: "Stream") -> None:
        self.descriptor, _ = stream.detach()
        os.set_blocking(self.descriptor, True)  # a frame may be larger than the socket's buffer
        self._frames = FrameReader()
        self.operations: list[str] = []  # of the frame that is under way
        self.began_ns = 0

    def send(self, data: bytes) -> None:
        """Send a frame. The daemon reads all of it before it answers, so this may wait for the socket's buffer."""
        self.began_ns = time.perf_counter_ns()
        left = memoryview(data)
        while left:
            left = left[os.write(self.descriptor, left) :]

    def receive(self) -> bytes | None:
        """Take what came: the payload of the answer, once it is whole. Raises OSError, EOFError."""
        data = os.read(self.descriptor, _READ_BYTES)
        if not data:
            raise EOFError
        payloads: list[bytes] = []
        self._frames.receive(data, payloads)
        return payloads[0] if payloads else None

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.descriptor)


class WireLoad:
    """All connections of one worker process."""

    def __init__(self, plan: "Plan", prefix: str, process: int, stop_descriptor: int) -> None:
        self._plan = plan
        self._codec = full()
        self._choices = Choices(plan, prefix, process)
        self._poll = select.epoll()
        self._lines: dict[int, Line] = {}
        self._stop_descriptor = stop_descriptor
        self._left = None if plan.requests is None else plan.share(plan.requests, process)
        self._end = float("inf")
        self.tally = Tally()
        for _ in range(plan.share(plan.connections, process)):
            line = Line(_connected(plan, self._codec))
            self._lines[line.descriptor] = line
            self._poll.register(line.descriptor, select.EPOLLIN)

    def run(self, progress: "Callable[[int], None]") -> None:
        """Do the work until it is done, time is up, or the parent says stop or is gone. Raises KvdError."""
        self._poll.register(self._stop_descriptor, select.EPOLLIN)
        if self._plan.duration_s is not None:
            self._end = time.monotonic() + self._plan.duration_s
        try:
            self._loop(progress)
        except (OSError, EOFError):
            raise Unavailable("the daemon closed a connection during the benchmark", []) from None

    def _loop(self, progress: "Callable[[int], None]") -> None:
        under_way = 0
        for line in self._lines.values():
            under_way += self._send_next(line)
        while under_way:
            for line in self._answered():
                self._take(line)
                under_way -= not self._send_next(line)
            progress(self.tally.done)

    def _answered(self) -> "Iterator[Line]":
        """The connections that have something to read. Raises TimedOut."""
        events = self._poll.poll(self._plan.timeout_s, _EVENTS)
        if not events:
            raise Unavailable(f"no answer from the daemon within {self._plan.timeout_s:g} seconds", [])
        for descriptor, _ in events:
            if descriptor == self._stop_descriptor:
                self._poll.unregister(descriptor)
                self._left = 0  # what is under way is still waited for, so that nothing is written behind our end
            else:
                yield self._lines[descriptor]

    def _send_next(self, line: Line) -> bool:
        """Send the next frame; false if there is no more to do."""
        count = self._plan.pipeline if self._left is None else min(self._plan.pipeline, self._left)
        if not count or line.operations or time.monotonic() >= self._end:
            return bool(line.operations)
        if self._left is not None:
            self._left -= count
        choices = self._choices
        line.operations = [choices.operation() for _ in range(count)]
        line.send(frame(self._codec.encode([choices.request(operation) for operation in line.operations])))
        return True

    def _take(self, line: Line) -> None:
        """Count what was answered, if all of it is there."""
        payload = line.receive()
        if payload is None:
            return
        self.tally.histogram.record(time.perf_counter_ns() - line.began_ns, len(line.operations))
        replies: Any = self._codec.decode(payload)
        if isinstance(replies, dict):
            self._refused(replies, len(line.operations))
        else:
            self._count(line.operations, replies)
        line.operations = []

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
        for line in self._lines.values():
            line.close()
        self._poll.close()


def _connected(plan: "Plan", codec: "Codec") -> "Stream":
    """A connection that has said hello. Raises KvdError."""
    deadline = Deadline(plan.timeout_s)
    stream = open_stream(plan.address, deadline)
    token = read_token(plan.token_file) if is_network(stream.address) else None
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
