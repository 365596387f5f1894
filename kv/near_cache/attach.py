"""Attaching a near cache to a connection: its first frame asks for the server's table, which comes as a descriptor.

Nothing is mapped before it is known that nobody can take it away again: a file that shrinks while it is mapped kills
whoever reads there. So it has to be a memfd that is sealed, of just the right size, with the right first words.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from time import monotonic_ns

from kv.errors import KvdError, ProtocolError, Unavailable
from kv.near_cache.cache import Table
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
    from kv.blocking.stream import Connection, Deadline
    from kv.near_cache.cache import NearCache, NearCacheLimits
    from kv.wire.protocol import ClientProtocol


def refuse_tcp(address: str | None) -> None:
    """Raise ValueError if there can be no near cache at ``address``."""
    if address is not None and is_network(address):
        raise ValueError(f"a near cache needs a Unix socket, not {address}: connect without near_cache")


def attach(near_cache: NearCache, connection: Connection, channel: ClientProtocol, deadline: Deadline) -> None:
    """Greet on a new connection, and give ``channel`` the table of its server. Closes the connection if it raises.

    It goes without if the server has no table to spare, or its clocks are others: ``near_cache.reason`` says so. Raises
    KvdError where there cannot be any (TCP, an older server), ProtocolError for what is no table of kvd's, Unavailable.
    The caller attaches ``near_cache`` to the table once the connection is in use.
    """
    descriptor = None
    try:
        if is_network(connection.address):
            raise _never(connection, "it needs a Unix socket")
        began_ns = monotonic_ns()
        descriptor = _greet(connection, channel, deadline)
        reason = _reason_against(channel.attached, connection, began_ns // 1_000)
        if reason is None:
            channel.table = _table(descriptor, channel.attached, near_cache.limits)
        else:
            near_cache.reason = reason
    except BaseException:
        connection.close()
        raise
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _greet(connection: Connection, channel: ClientProtocol, deadline: Deadline) -> int | None:
    """Send hello and attach; return with the answers in ``channel``, and the descriptor. Raises KvdError."""
    descriptor: int | None = None
    try:
        connection.send(channel.hello(None, attach=True), deadline)
        while channel.waiting and channel.refusal is None and not channel.finished:
            passed = connection.receive_descriptor(deadline)
            if passed is not None and descriptor is not None:
                os.close(passed)
            elif passed is not None:
                descriptor = passed
            channel.receive(connection.take(), [])
        _raise_refusal(connection, channel)
    except BaseException as error:
        if descriptor is not None:
            os.close(descriptor)
        if isinstance(error, TimeoutError):
            raise Unavailable(f"no answer from {connection.address} in time", [connection.address]) from None
        if isinstance(error, OSError | EOFError):
            raise Unavailable(f"{connection.address} closed the connection", [connection.address]) from error
        raise
    return descriptor


def _raise_refusal(connection: Connection, channel: ClientProtocol) -> None:
    if channel.refusal is not None and channel.refusal.code == "bad_request":
        raise _never(connection, f"it is an older one ({channel.refusal.message})")
    if channel.refusal is not None:
        raise channel.refusal
    if channel.finished:
        raise Unavailable(f"{connection.address} is stopping", [connection.address])


def _reason_against(attached: object, connection: Connection, began_us: int) -> str | None:
    """Why the answer to attach gives no near cache this time. Raises KvdError if it never will."""
    if isinstance(attached, dict):
        message = str(attached.get("message"))
        if attached.get("error") == "bad_request":
            raise _never(connection, message)
        return message
    _, _, now_us, clock = _answer(attached)
    if clock != clock_id() or clock < 0 or not began_us <= now_us <= monotonic_ns() // 1_000:
        return "the daemon's clocks are not this process's (a time namespace?)"
    return None


def _answer(attached: object) -> list[int]:
    if isinstance(attached, list) and len(attached) >= 4 and all(type(each) is int for each in attached[:4]):
        return attached[:4]
    raise ProtocolError("the daemon's answer to attach has an unexpected form", "bad_reply")


def _table(descriptor: int | None, attached: object, limits: NearCacheLimits) -> Table:
    """Map the table that came. Raises ProtocolError if it is none."""
    slots = _answer(attached)[0]
    if descriptor is None:
        raise ProtocolError("the daemon's answer to attach came without its table", "bad_reply")
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError:
        seals = 0  # nothing that could be sealed
    if seals & SEALS != SEALS:
        raise ProtocolError("the daemon's table is not sealed", "bad_reply")
    if not 0 < slots <= MAX_SLOTS or os.fstat(descriptor).st_size != table_bytes(slots):
        raise ProtocolError("the daemon's table has another size than it says", "bad_reply")
    try:
        first = memoryview(os.pread(descriptor, FIRST_GENERATION * WORD_BYTES, 0)).cast("Q")
        if (first[MAGIC_WORD], first[SLOTS_WORD]) != (MAGIC, slots):
            raise ProtocolError("the daemon's table is no table of generations", "bad_reply")
        mapped = mmap.mmap(descriptor, table_bytes(slots), mmap.MAP_SHARED, mmap.PROT_READ)
    except OSError as error:
        raise ProtocolError(f"the daemon's table cannot be mapped: {error}", "bad_reply") from error
    return Table(memoryview(mapped).cast("Q"), slots, limits)


def _never(connection: Connection, reason: str) -> KvdError:
    return KvdError(f"no near cache at {connection.address}: {reason}; connect without near_cache", "near_cache")
