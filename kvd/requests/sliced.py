"""Runs large frames, and frames that take long, in steps: no client delays others.

No request of a frame may run unless all of them decode. But decoded, 16 MiB of the shortest requests or keys become
hundreds of megabytes. So a large frame is first cut into its undecoded requests; they are decoded once, part by part,
only to check them, and then again, part by part, to run them. A frame that is one request skips the check.

        parts, decoded ──▶ pieces: some cheap requests together, or a costly one alone ──▶ run ──▶ encode

After each step the generator yields. The session goes on with it at once while its slice of measured time is not over,
else in a later turn (``turns.py``). The handler of a costly request may be a generator itself: it yields wherever other
requests may run, about each 256 keys, and returns the reply.
"""

from collections.abc import Iterable, Iterator, Sequence
from time import perf_counter

import msgspec

from kvd.engine.durability import NO_WAIT, LogPosition
from kvd.protocol import HEADER_BYTES
from kvd.protocol.messages import DECODE_ERRORS, AnyRequest, decode_request, encode_replies, split_batch
from kvd.requests.costs import PIECE_REQUESTS
from kvd.requests.errors import error_reply
from kvd.requests.executor import Executor
from kvd.requests.peer import Peer
from kvd.requests.reply_pieces import ReplyPieces, array_head, wide_array_head
from kvd.requests.table import CHEAP_US, GIVING_VALUES
from kvd.requests.turns import Steps

# A larger frame runs in steps.
SLICE_BYTES = 64 * 1024
# So much of it is decoded in one step; a request that is larger is decoded alone.
PART_BYTES = 16 * 1024

# The pieces of a reply frame in order, and what the frame waits for.
Result = tuple[list[bytes], LogPosition]


class HeldBytes:
    """The bytes that unfinished frames hold, input and replies so far. They count as memory."""

    __slots__ = ("total",)

    def __init__(self) -> None:
        self.total = 0


class SlicedRuns:
    """Runs frames in steps. ``held``: counts the bytes of unfinished frames.

    Each method returns a generator that yields after each step, and returns the result. Other requests may run at each
    yield.
    """

    def __init__(self, executor: Executor, held: HeldBytes) -> None:
        self._executor = executor
        self._held = held

    def run_payload(self, payload: memoryview, peer: Peer) -> Steps[Result]:
        """Run a large frame that is still encoded. The caller must not change ``payload`` meanwhile."""
        self._held.total += len(payload)
        try:
            return (yield from self._run_payload(payload, peer))
        finally:  # also if the client has gone and the rest never runs
            self._held.total -= len(payload)

    def run_requests(self, requests: Sequence[AnyRequest], peer: Peer) -> Steps[Result]:
        """Run a small frame that takes long, or whose first request has to authenticate its peer."""
        began = perf_counter()
        result = yield from self._run_parts([requests], array_head(len(requests)), peer)
        self._executor.add_sliced(requests, perf_counter() - began)
        return result

    def _run_payload(self, payload: memoryview, peer: Peer) -> Steps[Result]:
        yield
        try:
            raws = split_batch(payload)
            if len(raws) > self._executor.limits.max_requests_per_frame:
                return _refused(self._executor.too_many(len(raws)))
            if len(raws) > 1:
                for part in _parts(raws):
                    for raw in part:
                        decode_request(raw)
                    yield
            else:
                yield
                decoded = [decode_request(raws[0])]
                yield
        except DECODE_ERRORS as error:
            return _refused(error_reply("bad_request", str(error)))
        parts = [decoded] if len(raws) == 1 else ([decode_request(raw) for raw in part] for part in _parts(raws))
        began = perf_counter()
        result = yield from self._run_parts(parts, wide_array_head(len(raws)), peer)
        self._executor.add_sliced((), perf_counter() - began)
        return result

    def _run_parts(self, parts: Iterable[Sequence[AnyRequest]], head: bytes, peer: Peer) -> Steps[Result]:
        executor = self._executor
        replies = ReplyPieces(self._held, head, executor.limits.max_reply_bytes)
        try:
            for part in parts:
                for requests in self._pieces(part, peer):
                    yield from executor.measured(self._run_piece(requests, peer, replies), requests, peer)
                    yield
            return replies.frame(), replies.position
        finally:
            replies.release()

    def _run_piece(self, requests: Sequence[AnyRequest], peer: Peer, replies: ReplyPieces) -> Steps[None]:
        executor = self._executor
        if len(requests) == 1 and executor.cost_us(requests[0], peer) > CHEAP_US:
            reply, position = yield from executor.run_in_steps(requests[0], peer)
            yield from replies.add_in_steps(requests[0], reply)
        else:
            if peer.is_authenticated:
                yield from executor.expire_for(requests)
            cheap, replies.budget_bytes, position = executor.run_slice(requests, peer, replies.budget_bytes)
            replies.add(cheap)
        replies.position = replies.position.add(position)

    def _pieces(self, part: Sequence[AnyRequest], peer: Peer) -> Iterator[Sequence[AnyRequest]]:
        """Cut a part into pieces: a costly request alone, others as many as are cheap together.

        Values are read after the writes before them, because only then it is known how large they are; and the first
        request of a peer that is not authenticated runs alone, because it may authenticate it.
        """
        cost_us = begin = 0
        for number, request in enumerate(part):
            reads_after_write = type(request) in GIVING_VALUES and type(part[number - 1]) not in GIVING_VALUES
            if number > begin and (reads_after_write or not peer.is_authenticated):
                yield part[begin:number]
                cost_us, begin = 0, number
            own_us = self._executor.cost_us(request, peer)
            if number > begin and (cost_us + own_us > CHEAP_US or number - begin == PIECE_REQUESTS):
                yield part[begin:number]
                cost_us, begin = 0, number
            cost_us += own_us
        yield part[begin:]


def _refused(reply: dict[str, object]) -> Result:
    encoded = encode_replies(reply)
    return [len(encoded).to_bytes(HEADER_BYTES, "big"), encoded], NO_WAIT


def _parts(raws: list[msgspec.Raw]) -> Iterator[list[msgspec.Raw]]:
    begin = size = 0
    for number, raw in enumerate(raws):
        size += len(memoryview(raw))
        if size >= PART_BYTES or number - begin + 1 >= PIECE_REQUESTS:
            yield raws[begin : number + 1]
            begin, size = number + 1, 0
    if begin < len(raws):
        yield raws[begin:]
