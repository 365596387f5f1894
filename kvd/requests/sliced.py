"""Large frames, and those of costly requests, run in slices of about a millisecond: nobody waits for another's bulk.

No request of a frame may run unless all of them decode. But decoded, 16 MiB of the shortest requests or keys become
hundreds of megabytes. So a large frame is first cut into its undecoded requests; they are decoded once, slice by
slice, only to check them, and then again, slice by slice, to run them. A frame that is one request skips the check.

What a scan costs is not known before it is done. So a slice ends behind a costly request if its time is over, too.
"""

from collections.abc import Iterable, Iterator, Sequence
from time import perf_counter

import msgspec

from kvd.engine.durability import NO_WAIT
from kvd.protocol.frames import HEADER_BYTES
from kvd.protocol.messages import DECODE_ERRORS, AnyRequest, decode_request, encode_replies, split_batch
from kvd.requests.errors import error_reply
from kvd.requests.executor import Commands, is_costly
from kvd.server.peers import Peer

SLICE_BYTES = 64 * 1024
SLICE_REQUESTS = 1_024
SLICE_US = 1_000


def replies_in_slices(commands: Commands, payload: memoryview, peer: Peer) -> Iterator[list[bytes] | None]:
    """Run a frame; yields None after each slice, at last the reply frame in pieces to be written in this order.

    Nobody may change ``payload`` meanwhile.
    """
    commands.sliced_bytes += len(payload)
    try:
        yield from _run(commands, payload, peer)
    finally:  # also if the peer goes, and nobody wants the rest
        commands.sliced_bytes -= len(payload)


def _run(commands: Commands, payload: memoryview, peer: Peer) -> Iterator[list[bytes] | None]:
    yield None
    try:
        raws = split_batch(payload)
        if len(raws) > commands.limits.max_requests_per_frame:
            commands.needs = NO_WAIT
            yield _reply_frame([encode_replies(commands.too_many(len(raws)))])
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
        commands.needs = NO_WAIT
        yield _reply_frame([encode_replies(error_reply("bad_request", str(error)))])
        return
    slices = [decoded] if len(raws) == 1 else ([decode_request(raw) for raw in slice_] for slice_ in _slices(raws))
    yield from run_in_slices(commands, slices, len(raws), peer)


def run_in_slices(
    commands: Commands, slices: Iterable[Sequence[AnyRequest]], count: int, peer: Peer
) -> Iterator[list[bytes] | None]:
    """Run ``count`` decoded requests that come in slices; yields as ``replies_in_slices`` does."""
    pieces = [_array_header(count)]
    try:
        yield from _run_slices(commands, slices, pieces, peer)
    finally:
        commands.sliced_bytes -= sum(map(len, pieces[1:]))


def _run_slices(
    commands: Commands, slices: Iterable[Sequence[AnyRequest]], pieces: list[bytes], peer: Peer
) -> Iterator[list[bytes] | None]:
    budget_bytes, needs = commands.limits.max_reply_bytes, NO_WAIT
    began = perf_counter()
    for slice_ in slices:
        spent_us = 0
        for requests in _cut_behind_costly(slice_):
            if spent_us >= SLICE_US:
                yield None
                spent_us = 0
            while not commands.may_run(requests):
                commands.database.expire_step()
                yield None
            began_us = commands.database.timer()
            replies, budget_bytes = commands.run_counting(requests, peer, budget_bytes)
            pieces.append(b"".join(map(encode_replies, replies)))
            commands.sliced_bytes += len(pieces[-1])
            needs = needs.add(commands.needs)
            took_us = commands.database.timer() - began_us
            if took_us * 1_000 >= commands.slow_log.threshold_ns:
                commands.note_slow(requests, peer, took_us * 1_000)
            spent_us += took_us
        yield None
    commands.needs = needs  # others have run in between
    commands.measures.sliced.observe(perf_counter() - began)
    yield _reply_frame(pieces)


def _cut_behind_costly(requests: Sequence[AnyRequest]) -> Iterator[Sequence[AnyRequest]]:
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
    """MessagePack's head of an array of ``count`` elements, in its widest form."""
    return b"\xdd" + count.to_bytes(4, "big")


def _reply_frame(pieces: list[bytes]) -> list[bytes]:
    return [sum(map(len, pieces)).to_bytes(HEADER_BYTES, "big"), *pieces]
