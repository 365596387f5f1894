"""Sets of many connections, run together at the end of a turn of the loop.

With one set per frame the overhead dominates: a clock read, history pruning, a log reservation, and a log record of its
own. When many connections send one set each, the loop reads all of them in one turn. So the sets are queued and run at
once, as if they had arrived in one frame:

        read  s1 [set] ─┐  read s2 [set] ─┐  read s3 [set] ─┐             s1 ◀─ version 7
                enqueue ┴─────────────────┴─────────────────┴─▶ flush ──▶ s2 ◀─ version 8
                                                                          s3 ◀─ version 9

Each stays a commit of its own, in the order in which the sets arrived. Before any other request runs, the queue is
flushed. So all requests take effect in the order in which they were read, on each connection and across them. A client
that is alone (it also sent the previous set) skips the queue.
"""

import asyncio
from itertools import groupby
from typing import Protocol, TypeGuard

from kvd.engine.durability import NO_WAIT, Durability, LogPosition
from kvd.protocol import HEADER_BYTES
from kvd.protocol.messages import AnyRequest, Set, encode_replies
from kvd.requests import permissions
from kvd.requests.executor import Executor
from kvd.requests.peer import Peer

# No more requests are queued than one turn of the loop may take.
MAX_REQUESTS = 1024
# A set of more keys runs by itself.
MAX_ENTRIES = 128


class Sender(Protocol):
    """The connection that sent the sets of a frame."""

    peer: Peer

    def run_frame(self, requests: list[Set], frame_bytes: int) -> None:
        """Run the frame by itself and reply."""

    def reply(self, data: bytes, position: LogPosition) -> None:
        """Send the reply to a queued frame, unless the connection has closed."""

    def fail_internal(self) -> None:
        """Close after a fault in the server itself."""


Queued = tuple[Sender, list[Set], int]  # the last is the size of the frame in bytes
Batch = tuple[list[Queued], list[int], LogPosition]


class SetBatcher:
    """The sets that were queued during this turn of the loop. ``is_pending``: whether there are any."""

    def __init__(self, executor: Executor, durability: Durability, loop: asyncio.AbstractEventLoop) -> None:
        self._executor = executor
        self._durability = durability
        self._loop = loop
        self._queue: list[Queued] = []
        self._requests = 0
        self._is_due = False
        self._last_sender: Sender | None = None
        self.is_pending = False

    @staticmethod
    def accepts(requests: list[AnyRequest]) -> TypeGuard[list[Set]]:
        """Whether a frame may be queued: sets only, as durable as all others, and few."""
        if len(requests) == 1:
            request = requests[0]
            return (
                type(request) is Set
                and len(request.entries) <= MAX_ENTRIES
                and (request.how is None or request.how.sync is None)
            )
        if len(requests) > MAX_REQUESTS or set(map(type, requests)) != {Set}:
            return False
        options = [request.how for request in requests]  # type: ignore[union-attr]
        return not any(options) or all(each is None or each.sync is None for each in options)

    def enqueue(self, sender: Sender, requests: list[Set], frame_bytes: int) -> None:
        """Run these sets at the end of this turn. ``sender`` gets its reply then, or once that is durable."""
        is_occupied = self._durability.is_occupied
        peer = sender.peer
        if peer.is_restricted and not permissions.permits_all(requests, peer.grant):
            sender.run_frame(requests, frame_bytes)
            return
        if sender is self._last_sender and not self._queue and not is_occupied:
            sender.run_frame(requests, frame_bytes)
            return
        self._last_sender = sender
        self._queue.append((sender, requests, frame_bytes))
        self.is_pending = True
        self._requests += len(requests)
        if self._requests >= MAX_REQUESTS:
            self.flush()
        elif is_occupied:
            # A commit of this turn waits for the next sync anyway, and the writer flushes the queue before that.
            self._durability.expect(self._requests, self.flush)
        elif not self._is_due:
            self._is_due = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Run all queued sets, and reply."""
        self._is_due = self.is_pending = False
        if not self._queue:
            return
        queue, self._queue, self._requests = self._queue, [], 0
        batches: list[Batch] = []
        by_author = [queue] if len(queue) == 1 else [list(group) for _, group in groupby(queue, _author)]
        for frames in by_author:
            result = self._run_together(frames)
            if result is not None:
                batches.append((frames, *result))
                continue
            self._reply(batches)
            batches = []
            for sender, requests, frame_bytes in frames:
                sender.run_frame(requests, frame_bytes)
        self._reply(batches)

    def _run_together(self, frames: list[Queued]) -> tuple[list[int], LogPosition] | None:
        """Run frames of one author. Return the versions and what the replies wait for; None if nothing was done."""
        requests = frames[0][1] if len(frames) == 1 else [each for _, requests, _ in frames for each in requests]
        try:
            return self._executor.set_each(requests, frames[0][0].peer)
        except Exception:
            for sender, _, _ in frames:
                sender.fail_internal()
            frames.clear()
            return [], NO_WAIT

    def _reply(self, batches: list[Batch]) -> None:
        """Send the replies, after writing to the log what can be written at once: that holds no reply back."""
        if batches:
            self._durability.write_at_once()
        for frames, versions, position in batches:
            at = 0
            for sender, requests, _ in frames:
                end = at + len(requests)
                payload = encode_replies(versions[at:end])
                sender.reply(len(payload).to_bytes(HEADER_BYTES, "big") + payload, position)
                at = end


def _author(queued: Queued) -> object:
    return queued[0].peer.author
