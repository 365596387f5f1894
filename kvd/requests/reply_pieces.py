"""The reply frame of a run in steps, while it grows: in pieces, so that no step encodes or copies more than a little.

A large value becomes a piece itself, without a copy.
"""

from collections.abc import Iterator
from typing import Any, Protocol

from kvd.engine.durability import NO_WAIT, LogPosition
from kvd.protocol import HEADER_BYTES
from kvd.protocol.messages import AnyRequest, Fetch, GetMany, encode_replies
from kvd.requests.errors import error_reply
from kvd.requests.reply_size import ARRAY_BYTES, VALUE_HEAD_BYTES, fetched_bytes
from kvd.requests.turns import Steps

# A value of this size is not copied.
SHARED_BYTES = 16 * 1024
# Smaller pieces are joined until they have this size.
PIECE_BYTES = 64 * 1024
# How many values are sized or encoded in one step.
STEP_VALUES = 256


class Held(Protocol):
    """Counts the bytes that unfinished frames hold."""

    total: int


class ReplyPieces:
    """The replies to the requests of a frame, after their ``head``. ``position``: what they wait for.

    ``budget_bytes``: how much more fits into the frame, which has at most ``max_bytes``.
    """

    def __init__(self, held: Held, head: bytes, max_bytes: int) -> None:
        self._held = held
        self._pieces: list[bytes] = []
        self._tail: list[bytes] = []
        self._tail_bytes = 0
        self._held_bytes = 0
        self._max_bytes = max_bytes
        self.budget_bytes = max_bytes
        self.position: LogPosition = NO_WAIT
        self._append(head)

    def add(self, replies: list[Any]) -> None:
        """Add replies that are small together, and that fit."""
        self._append(b"".join(map(encode_replies, replies)))

    def add_in_steps(self, request: AnyRequest, reply: Any) -> Steps[None]:  # noqa: ANN401 - a reply may be anything
        """Add a reply of any size; an error in its place if it does not fit."""
        size = yield from bytes_in_steps(request, reply)
        if size > self.budget_bytes:
            self._append(encode_replies(too_large(size, self._max_bytes)))
            return
        self.budget_bytes -= size
        if type(reply) is bytes:
            self._append_value(reply)
        elif type(request) is GetMany and type(reply) is list:
            self._append(array_head(len(reply)))
            yield from self._append_each(reply, self._append_value)
        elif type(request) is Fetch and type(reply) is list:
            self._append(array_head(len(reply)))
            yield from self._append_each(reply, self._append_fetched)
        else:
            self._append(encode_replies(reply))

    def frame(self) -> list[bytes]:
        """Return the pieces of the frame, its header first."""
        self._flush()
        return [sum(map(len, self._pieces)).to_bytes(HEADER_BYTES, "big"), *self._pieces]

    def release(self) -> None:
        """Count the bytes no more."""
        self._held.total -= self._held_bytes
        self._held_bytes = 0

    def _append_each(self, items: list[Any], append: Any) -> Steps[None]:  # noqa: ANN401 - a method of this class
        for some in _chunks(items):
            for item in some:
                append(item)
            yield

    def _append_value(self, value: bytes | None) -> None:
        if value is None or len(value) < SHARED_BYTES:
            self._append(encode_replies(value))
        else:
            self._append(b"\xc6" + len(value).to_bytes(4, "big"))
            self._append(value)

    def _append_fetched(self, item: tuple[bytes | None, int, int | None, int | None, int | None]) -> None:
        value, *rest = item
        if value is None or len(value) < SHARED_BYTES:
            self._append(encode_replies(item))
        else:
            self._append(b"\x95")
            self._append_value(value)
            self._append(encode_replies(rest)[1:])

    def _append(self, piece: bytes) -> None:
        self._held.total += len(piece)
        self._held_bytes += len(piece)
        if len(piece) >= SHARED_BYTES:
            self._flush()
            self._pieces.append(piece)
            return
        self._tail.append(piece)
        self._tail_bytes += len(piece)
        if self._tail_bytes >= PIECE_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._tail:
            self._pieces.append(b"".join(self._tail))
            self._tail, self._tail_bytes = [], 0


def array_head(count: int) -> bytes:
    """Return MessagePack's head of an array of ``count`` elements."""
    if count < 1 << 4:
        return bytes((0x90 | count,))
    return b"\xdc" + count.to_bytes(2, "big") if count < 1 << 16 else wide_array_head(count)


def wide_array_head(count: int) -> bytes:
    """Return the head in its longest form."""
    return b"\xdd" + count.to_bytes(4, "big")


def bytes_in_steps(request: AnyRequest, reply: Any) -> Steps[int]:  # noqa: ANN401
    """Return how many bytes a reply takes."""
    if type(reply) is bytes:
        return len(reply) + VALUE_HEAD_BYTES
    size = ARRAY_BYTES
    if type(request) is GetMany and type(reply) is list:
        for some in _chunks(reply):
            size += sum(len(value or b"") + VALUE_HEAD_BYTES for value in some)
            yield
        return size
    if type(request) is Fetch and type(reply) is list:
        for some in _chunks(reply):
            size += sum(map(fetched_bytes, some))
            yield
        return size
    return len(encode_replies(reply))  # small, or a page


def too_large(size: int, max_bytes: int) -> dict[str, object]:
    """Return the error in place of a reply that does not fit."""
    return error_reply("reply_too_large", f"the reply of {size} bytes does not fit into a frame of {max_bytes}")


def _chunks(items: list[Any]) -> Iterator[list[Any]]:
    return (items[begin : begin + STEP_VALUES] for begin in range(0, len(items), STEP_VALUES))
