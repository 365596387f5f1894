"""The client's side of the protocol on one connection: which frames await their replies, in order. No I/O.

    encode() ──▶ bytes to send          received bytes ──▶ receive() ──▶ frames with their replies
              │                                                ▲
              └──▶ pending: frame, frame, … ── first in, first out ┘

A frame stays in ``pending`` even if its caller is gone (interrupted, timed out, cancelled). Its reply is still to come
and is then dropped. So no reply is ever taken for that of another frame.
"""

from __future__ import annotations

import os
from collections import deque

from kv.errors import KvdError, ProtocolError, Refused, from_reply
from kv.wire import operations
from kvd.protocol import HEADER_BYTES, Position, frame, position_type

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Protocol

    from kv.wire.codecs import Codec

    class Batch(Protocol):
        """Requests that travel together, and whatever wants their replies. An Exchange, nearly always."""

        @property
        def size(self) -> int: ...
        def requests(self, protocol: ClientProtocol) -> Sequence[tuple[object, ...]]: ...
        def answered(self, replies: Sequence[object]) -> None: ...
        def refused(self, error: KvdError) -> None: ...

    Frame = Sequence[Batch]

# No daemon's default limit is larger. A longer length means that the peer speaks another protocol.
MAX_REPLY_BYTES = 1 << 30
_PREFIX_BYTES = 9
# Stands in ``pending`` for the hello frame.
_HELLO: Frame = ()


class StoreView:
    """What one process knows of the daemon's store, and the ids that the process gives to its writes."""

    __slots__ = ("_last_id", "_prefix", "position", "store_id", "version")

    def __init__(self) -> None:
        self.store_id: str | None = None
        self.version: int | None = None  # the highest known version of that store
        self.position: type[Position] = Position  # makes a position in that store of a version
        # An id is 16 bytes that no other process chooses: a random prefix and a number.
        self._prefix = os.urandom(_PREFIX_BYTES)
        self._last_id = 0

    def new_id(self) -> bytes:
        """Return an id for a write."""
        self._last_id += 1
        return self._prefix + self._last_id.to_bytes(16 - _PREFIX_BYTES, "big")

    def observe_store(self, store_id: str, version: int) -> None:
        """Note which store the daemon has, and its version."""
        if store_id != self.store_id:
            self.store_id, self.version = store_id, version
            self.position = position_type(store_id)
        else:
            self.observe_version(version)

    def observe_version(self, version: int) -> None:
        """Note that the store has reached ``version``."""
        if self.version is None or version > self.version:
            self.version = version


class FrameReader:
    """Splits a stream of bytes into frames, wherever the pieces begin and end. The client's only parser of frames."""

    __slots__ = ("_buffer", "_needed")

    def __init__(self) -> None:
        self._buffer = bytearray()  # the beginning of a frame that is not complete yet
        self._needed = HEADER_BYTES  # how long the buffer must be before it is worth parsing again

    def receive(self, data: bytes, output: list[Any]) -> None:
        """Parse ``data``, and append to ``output`` what each frame amounts to: here its payload.

        Raises ProtocolError for a length that no daemon sends. The stream cannot be used after that.
        """
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._needed:
                return
            data = bytes(self._buffer)
            self._buffer.clear()
        at = 0
        while len(data) - at >= HEADER_BYTES:
            length = int.from_bytes(data[at : at + HEADER_BYTES], "big")
            if length > MAX_REPLY_BYTES:
                raise ProtocolError("what answers does not speak kvd's protocol", "bad_reply")
            end = at + HEADER_BYTES + length
            if end > len(data):
                break
            self._take(data[at + HEADER_BYTES : end], output)
            at = end
        if at < len(data):
            self._buffer += data[at:]
            has_header = len(data) - at >= HEADER_BYTES
            self._needed = HEADER_BYTES + (length if has_header else 0)

    def _take(self, payload: bytes, output: list[Any]) -> None:
        """Handle the payload of one frame."""
        output.append(payload)


class _Unclaimed:
    """Stands in ``pending`` for requests whose replies have no taker."""

    __slots__ = ("size",)

    def __init__(self, size: int) -> None:
        self.size = size

    def requests(self, protocol: ClientProtocol) -> Sequence[tuple[object, ...]]:
        """Return nothing: they are sent already."""
        return ()

    def answered(self, replies: Sequence[object]) -> None:
        """Drop the replies."""

    def refused(self, error: KvdError) -> None:
        """Drop the error."""


class ClientProtocol(FrameReader):
    """The frames under way on one connection, and what the daemon has said about itself there."""

    __slots__ = (
        "_asked_to_attach",
        "_codec",
        "attach_reply",
        "events",
        "greeted_at",
        "hello_sent",
        "limits",
        "near_table",
        "pending",
        "refusal",
        "shutting_down",
        "spare_lock_names",
        "store_id",
        "store_view",
    )

    def __init__(self, codec: Codec, store_view: StoreView) -> None:
        super().__init__()
        self._codec = codec
        self.pending: deque[Frame] = deque()
        self.events: list[object] | None = None  # takes a feed's events, once every request has its reply
        self.store_view = store_view
        self.hello_sent = False
        self.store_id: str | None = None  # known as soon as the daemon has answered hello
        self.greeted_at: int | None = None  # the store's version then: before any request on this connection ran
        self.limits: dict[str, int] = {}
        self._asked_to_attach = False
        self.attach_reply: object = None
        self.near_table: Any = None  # the near cache's Table for reads on this connection; None without one
        self.shutting_down = False  # the daemon has said goodbye: no pending frame ran
        self.refusal: KvdError | None = None  # why the daemon rejects this connection
        self.spare_lock_names: list[str] = []  # of contenders for locks that are done, for the next ones

    # ------------------------------------------------------------------ sending

    def hello(self, token: str | None, *, attach: bool = False) -> bytes:
        """Return the greeting frame, and handle its reply. ``attach``: ask for a near cache as well."""
        requests = [operations.hello("kv", token).request, *([operations.ATTACH] if attach else [])]
        data = frame(self._codec.encode(requests))
        self.hello_sent, self._asked_to_attach = True, attach
        self.pending.append(_HELLO)
        return data

    def encode(self, batches: Frame) -> bytes:
        """Return the bytes of a frame. The caller adds the frame to ``pending``, and sends all of the bytes.

        Raises ValueError for text that is not Unicode, Refused for a frame larger than the daemon's limit.
        """
        if len(batches) == 1:
            requests = batches[0].requests(self)
        else:
            requests = [request for batch in batches for request in batch.requests(self)]
        payload = self._codec.encode(requests)
        max_bytes = self.limits.get("max_frame_bytes")
        if max_bytes is not None and len(payload) > max_bytes:
            text = f"a frame has at most {max_bytes} bytes, this one would have {len(payload)}"
            raise Refused(text, "too_large")
        return frame(payload)

    def encode_unclaimed(self, requests: Sequence[tuple[object, ...]]) -> bytes:
        """Return the bytes of a frame whose replies are dropped, unless ``take_only_replies`` takes them.

        The frame is in ``pending`` from now on: the caller sends all of it or closes the connection. Raises ValueError.
        """
        data = frame(self._codec.encode(requests))
        self.pending.append((_Unclaimed(len(requests)),))
        return data

    # ------------------------------------------------------------------ receiving

    def take_only_replies(self, data: bytes) -> list[Any] | None:
        """Return the replies to the unclaimed frame, if ``data`` is just them and nothing else is under way.

        Otherwise, and if the first reply is an error, handle ``data`` and return None. Raises ProtocolError.
        """
        if len(self.pending) == 1 and not self._buffer and int.from_bytes(data[:HEADER_BYTES], "big") == len(data) - 4:
            replies = self._decoded(memoryview(data)[HEADER_BYTES:])
            if type(replies) is list and len(replies) == self.pending[0][0].size:
                self.pending.popleft()
                return None if type(replies[0]) is dict else replies
        self.receive_and_dispatch(data)
        return None

    def receive_and_dispatch(self, data: bytes) -> None:
        """Parse ``data``, and hand each reply to the batches that it answers. Raises ProtocolError."""
        answered: list[tuple[Frame, Any]] = []
        self.receive(data, answered)
        for batches, reply in answered:
            dispatch(batches, reply)

    def _take(self, payload: bytes, output: list[tuple[Frame, Any]]) -> None:
        """Handle one frame. To ``output`` goes the frame that it answers, with the list of replies or the error map."""
        reply: Any = self._decoded(payload)
        if type(reply) is dict and reply.get("error") == "shutting_down":
            self.shutting_down = True
            return
        if self.events is not None and not self.pending and type(reply) is list:
            self.events += reply
            return
        if type(reply) is dict and not self.pending:
            self.refusal = self.refusal or from_reply(reply)  # the first reason counts
            return
        if not self.pending or type(reply) not in (list, dict):
            raise ProtocolError("the daemon's reply is not one of kvd's protocol", "bad_reply")
        batches = self.pending[0]
        if batches is _HELLO:
            if self._asked_to_attach and type(reply) is list and len(reply) == 2:
                self.attach_reply = reply.pop()
            self._take_greeting(reply[0] if type(reply) is list and len(reply) == 1 else reply)
        elif type(reply) is list and len(reply) != _size(batches):
            raise ProtocolError("the daemon's reply is not one of kvd's protocol", "bad_reply")
        else:
            output.append((batches, reply))
        self.pending.popleft()

    def _decoded(self, payload: bytes | memoryview) -> object:
        try:
            return self._codec.decode(payload)
        except self._codec.errors as error:
            raise ProtocolError("the daemon's reply is not MessagePack", "bad_reply") from error

    def _take_greeting(self, reply: object) -> None:
        if type(reply) is dict:
            self.refusal = from_reply(reply)
            return
        try:
            fields: list[Any] = list(reply)  # type: ignore[call-overload]  # raises for what has no elements
            self.greeted_at = int(fields[3])
            self.store_view.observe_store(str(fields[2]), self.greeted_at)
            self.limits = dict(fields[4])
        except (ValueError, TypeError, IndexError) as error:
            raise ProtocolError("the daemon's answer to hello has an unexpected form", "bad_reply") from error
        self.store_id = self.store_view.store_id


def _size(batches: Frame) -> int:
    return batches[0].size if len(batches) == 1 else sum(batch.size for batch in batches)


def dispatch(batches: Frame, reply: Any) -> None:  # noqa: ANN401  # a list or a dict
    """Hand the reply to a frame to the batches in it, each its part."""
    if type(reply) is list and len(batches) == 1:
        batches[0].answered(reply)
        return
    if type(reply) is dict:
        for batch in batches:
            batch.refused(from_reply(reply))
        return
    at = 0
    for batch in batches:
        size = batch.size
        batch.answered(reply[at : at + size])
        at += size
