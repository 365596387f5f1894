"""Attach a near cache to a connection: its first frame asks for the server's table, which comes as a descriptor.

The client maps nothing before it knows that no process can shrink the file: a mapped file that shrinks kills its
readers. So the file must be a sealed memfd of the right size, with the right first words.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from time import monotonic_ns

from kv.errors import KvdError, ProtocolError, Stopping, Unavailable
from kv.near_cache.table import Table
from kvd.protocol.address import is_network
from kvd.protocol.near_cache import (
    FIRST_GENERATION,
    MAGIC,
    MAGIC_WORD,
    MAX_SLOTS,
    SEALS,
    SLOTS_WORD,
    WORD_BYTES,
    clock_id,
    table_bytes,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kv.blocking.stream import Deadline, Stream
    from kv.near_cache.cache import NearCache
    from kv.near_cache.entries import NearCacheLimits
    from kv.wire.protocol import ClientProtocol


def refuse_tcp(address: str | None) -> None:
    """Raise ValueError if there can be no near cache at ``address``."""
    if address is not None and is_network(address):
        raise ValueError(f"a near cache needs a Unix socket, not {address}: connect without near_cache")


def attach(near_cache: NearCache, stream: Stream, protocol: ClientProtocol, deadline: Deadline) -> None:
    """Greet on a new connection, and give ``protocol`` the table of its server. Closes the stream if it raises.

    Goes on without a table if the server has none to spare, or other clocks: ``near_cache.reason`` says so. Raises
    KvdError where there can never be one (TCP, an older server), ProtocolError for an invalid table, Unavailable.
    Afterwards the caller attaches ``near_cache`` to the table, once the connection is in use.
    """
    descriptor = None
    try:
        if is_network(stream.address):
            raise _impossible(stream, "it needs a Unix socket")
        began_ns = monotonic_ns()
        descriptor = _greet(stream, protocol, deadline)
        reason = _reason_against(protocol.attach_reply, stream, began_ns // 1_000)
        if reason is None:
            protocol.near_table = _table(descriptor, protocol.attach_reply, near_cache.limits)
        else:
            near_cache.reason = reason
    except BaseException:
        stream.close()
        raise
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _greet(stream: Stream, protocol: ClientProtocol, deadline: Deadline) -> int | None:
    """Send hello and attach. ``protocol`` keeps the replies; returns the descriptor, if one came. Raises KvdError."""
    descriptor: int | None = None
    try:
        stream.send(protocol.hello(None, attach=True), deadline)
        while protocol.pending and protocol.refusal is None and not protocol.shutting_down:
            received = stream.receive_descriptor(deadline)
            if received is not None and descriptor is not None:
                os.close(received)
            elif received is not None:
                descriptor = received
            protocol.receive(stream.take(), [])
        _raise_refusal(stream, protocol)
    except BaseException as error:
        if descriptor is not None:
            os.close(descriptor)
        if isinstance(error, TimeoutError):
            raise Unavailable(f"no answer from {stream.address} in time", [stream.address]) from None
        if isinstance(error, OSError | EOFError):
            raise Unavailable(f"{stream.address} closed the connection", [stream.address]) from error
        raise
    return descriptor


def _raise_refusal(stream: Stream, protocol: ClientProtocol) -> None:
    if protocol.refusal is not None and protocol.refusal.code == "bad_request":
        raise _impossible(stream, f"it is an older one ({protocol.refusal.message})")
    if protocol.refusal is not None:
        raise protocol.refusal
    if protocol.shutting_down:
        raise Stopping(f"{stream.address} is stopping", [stream.address])


def _reason_against(reply: object, stream: Stream, began_us: int) -> str | None:
    """Return why there is no near cache this time. Raises KvdError if there can never be one."""
    if isinstance(reply, dict):
        message = str(reply.get("message"))
        if reply.get("error") == "bad_request":
            raise _impossible(stream, message)
        return message
    _, _, now_us, clock = _fields(reply)
    if clock != clock_id() or clock < 0 or not began_us <= now_us <= monotonic_ns() // 1_000:
        return "the daemon's clocks are not this process's (a time namespace?)"
    return None


def _fields(reply: object) -> list[int]:
    if isinstance(reply, list) and len(reply) >= 4 and all(type(each) is int for each in reply[:4]):
        return reply[:4]
    raise ProtocolError("the daemon's answer to attach has an unexpected form", "bad_reply")


def _table(descriptor: int | None, reply: object, limits: NearCacheLimits) -> Table:
    """Map the server's table. Raises ProtocolError if it is not a valid one."""
    slots = _fields(reply)[0]
    if descriptor is None:
        raise ProtocolError("the daemon's answer to attach came without its table", "bad_reply")
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError:
        seals = 0  # not a file that can be sealed
    if seals & SEALS != SEALS:
        raise ProtocolError("the daemon's table is not sealed", "bad_reply")
    if not 0 < slots <= MAX_SLOTS or os.fstat(descriptor).st_size != table_bytes(slots):
        raise ProtocolError("the daemon's table has another size than it says", "bad_reply")
    try:
        first = memoryview(os.pread(descriptor, FIRST_GENERATION * WORD_BYTES, 0)).cast("Q")
        if (first[MAGIC_WORD], first[SLOTS_WORD]) != (MAGIC, slots):
            raise ProtocolError("the daemon's table is not a table of generations", "bad_reply")
        mapped = mmap.mmap(descriptor, table_bytes(slots), mmap.MAP_SHARED, mmap.PROT_READ)
    except OSError as error:
        raise ProtocolError(f"the daemon's table cannot be mapped: {error}", "bad_reply") from error
    return Table(memoryview(mapped).cast("Q"), slots, limits)


def _impossible(stream: Stream, reason: str) -> KvdError:
    return KvdError(f"no near cache at {stream.address}: {reason}; connect without near_cache", "near_cache")
