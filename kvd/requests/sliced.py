"""Runs large frames, and frames of several costly requests, in slices of about a millisecond: no client delays others.

No request of a frame may run unless all of them decode. But decoded, 16 MiB of the shortest requests or keys become
hundreds of megabytes. So a large frame is first cut into its undecoded requests; they are decoded once, slice by
slice, only to check them, and then again, slice by slice, to run them. A frame that is one request skips the check.

The cost of a scan is not known in advance. So a slice also ends after a costly request if its time is over.
"""

from collections.abc import Iterable, Iterator, Sequence
from time import perf_counter

import msgspec

from kvd.engine.durability import NO_WAIT, LogPosition
from kvd.protocol import HEADER_BYTES
from kvd.protocol.messages import DECODE_ERRORS, AnyRequest, decode_request, encode_replies, split_batch
from kvd.requests.errors import error_reply
from kvd.requests.executor import Executor
from kvd.requests.peer import Peer
from kvd.requests.table import is_costly

# A larger frame runs in slices.
SLICE_BYTES = 64 * 1024
SLICE_REQUESTS = 1_024
SLICE_US = 1_000

# The pieces of a reply frame in order, and what the frame waits for.
Result = tuple[list[bytes], LogPosition]


class HeldBytes:
    """The bytes that unfinished frames hold, input and replies so far. They count as memory."""

    __slots__ = ("total",)

    def __init__(self) -> None:
        self.total = 0


class SlicedRuns:
    """Runs frames in slices. ``held``: counts the bytes of unfinished frames.

    Each method returns an iterator that yields None after each slice, and finally the result. Other requests may run
    between two slices.
    """

    def __init__(self, executor: Executor, held: HeldBytes) -> None:
        self._executor = executor
        self._held = held

    def run_payload(self, payload: memoryview, peer: Peer) -> Iterator[Result | None]:
        """Run a large frame that is still encoded. The caller must not change ``payload`` meanwhile."""
        self._held.total += len(payload)
        try:
            yield from self._run_payload(payload, peer)
        finally:  # also if the client has gone and the rest never runs
            self._held.total -= len(payload)

    def run_requests(self, requests: Sequence[AnyRequest], peer: Peer) -> Iterator[Result | None]:
        """Run a small frame whose requests are costly."""
        return self._run_slices([requests], len(requests), peer)

    def _run_payload(self, payload: memoryview, peer: Peer) -> Iterator[Result | None]:
        yield None
        try:
            raws = split_batch(payload)
            if len(raws) > self._executor.limits.max_requests_per_frame:
                yield _refused(self._executor.too_many(len(raws)))
                return
            if len(raws) > 1:
                for slice_ in _slices(raws):
                    for raw in slice_:
                        decode_request(raw)
                    yield None
            elif len(raws) == 1:
                yield None
                decoded = [decode_request(raws[0])]
                yield None
        except DECODE_ERRORS as error:
            yield _refused(error_reply("bad_request", str(error)))
            return
        slices = [decoded] if len(raws) == 1 else ([decode_request(raw) for raw in slice_] for slice_ in _slices(raws))
        yield from self._run_slices(slices, len(raws), peer)

    def _run_slices(self, slices: Iterable[Sequence[AnyRequest]], count: int, peer: Peer) -> Iterator[Result | None]:
        pieces = [_array_header(count)]
        try:
            yield from self._run_into(pieces, slices, peer)
        finally:
            self._held.total -= sum(map(len, pieces[1:]))

    def _run_into(
        self, pieces: list[bytes], slices: Iterable[Sequence[AnyRequest]], peer: Peer
    ) -> Iterator[Result | None]:
        executor = self._executor
        budget_bytes, position = executor.limits.max_reply_bytes, NO_WAIT
        start = perf_counter()
        for slice_ in slices:
            spent_us = 0
            for requests in _cut_after_costly(slice_):
                if spent_us >= SLICE_US:
                    yield None
                    spent_us = 0
                while not executor.can_run(requests):
                    executor.expire_more()
                    yield None
                start_us = executor.now_us()
                replies, budget_bytes, slice_position = executor.run_slice(requests, peer, budget_bytes)
                pieces.append(b"".join(map(encode_replies, replies)))
                self._held.total += len(pieces[-1])
                position = position.add(slice_position)
                held_us = executor.now_us() - start_us
                executor.note_slice(requests, peer, held_us)
                spent_us += held_us
            yield None
        executor.add_sliced(perf_counter() - start)
        yield _reply_frame(pieces), position


def _refused(reply: dict[str, object]) -> Result:
    return _reply_frame([encode_replies(reply)]), NO_WAIT


def _cut_after_costly(requests: Sequence[AnyRequest]) -> Iterator[Sequence[AnyRequest]]:
    begin = 0
    for number, request in enumerate(requests, 1):
        if is_costly(request):
            yield requests[begin:number]
            begin = number
    if begin < len(requests):
        yield requests[begin:]


def _slices(raws: list[msgspec.Raw]) -> Iterator[list[msgspec.Raw]]:
    begin = size = 0
    for number, raw in enumerate(raws):
        size += len(memoryview(raw))
        if size >= SLICE_BYTES or number - begin + 1 >= SLICE_REQUESTS:
            yield raws[begin : number + 1]
            begin, size = number + 1, 0
    if begin < len(raws):
        yield raws[begin:]


def _array_header(count: int) -> bytes:
    """Return MessagePack's head of an array of ``count`` elements, in its widest form."""
    return b"\xdd" + count.to_bytes(4, "big")


def _reply_frame(pieces: list[bytes]) -> list[bytes]:
    return [sum(map(len, pieces)).to_bytes(HEADER_BYTES, "big"), *pieces]
