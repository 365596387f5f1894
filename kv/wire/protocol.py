"""One connection's side of the protocol: whose frames wait for their replies, in order. No I/O.

        encode() ──▶ bytes to send          bytes received ──▶ receive() ──▶ frames with their replies
              │                                                   ▲
              └──▶ waiting: frame, frame, … ── first in, first out ┘

A frame whose caller has gone (interrupted, timed out, cancelled) stays in its place: its reply is still to come, and
is thrown away when it does. So no answer is ever taken for another's.
"""

from __future__ import annotations

from collections import deque

from kv.errors import KvdError, ProtocolError, Refused, from_reply
from kv.wire import operations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from kv.near_cache.cache import Table
    from kv.wire.codecs import Codec
    from kv.wire.exchange import Exchange, StoreView

    Frame = Sequence[Exchange]

HEADER_BYTES = 4
# More than any server sends by default; a length above it is somebody else's protocol.
MAX_REPLY_BYTES = 1 << 30
# The frame in ``waiting`` that is the hello.
_HELLO: Frame = ()


class _Unattended:
    """In the place of a delivery: requests whose replies nobody waits for."""

    __slots__ = ("size",)

    def __init__(self, size: int) -> None:
        self.size = size

    def answered(self, replies: Sequence[object]) -> None:
        """Thrown away."""

    def refused(self, error: KvdError) -> None:
        """Nothing to be told."""


def framed(payload: bytes) -> bytes:
    """A payload with its length in front."""
    return len(payload).to_bytes(HEADER_BYTES, "big") + payload


class ClientProtocol:
    """What is under way on one connection, and what the daemon has told about itself there."""

    __slots__ = (
        "_attaching",
        "_codec",
        "_left",
        "_wanted",
        "attached",
        "events",
        "finished",
        "knowledge",
        "limits",
        "refusal",
        "said_hello",
        "store_id",
        "table",
        "waiting",
    )

    def __init__(self, codec: Codec, knowledge: StoreView) -> None:
        self._codec = codec
        self._left = bytearray()  # received, and no whole frame yet
        self._wanted = HEADER_BYTES  # how much of it there has to be before it is worth another look
        self.waiting: deque[Frame] = deque()
        self.events: list[object] | None = None  # where a feed's events go, once everything else is answered
        self.knowledge = knowledge
        self.said_hello = False
        self.store_id: str | None = None  # known once hello was answered
        self.limits: dict[str, int] = {}
        self._attaching = False  # whether attach was sent with hello, and what was answered to it
        self.attached: object = None
        self.table: Table | None = None  # of the near cache, for what is read on this connection
        self.finished = False  # the daemon has said goodbye: what still waits did not run
        self.refusal: KvdError | None = None  # why the daemon does not want this connection

    # ------------------------------------------------------------------ sending

    def hello(self, token: str | None, *, attach: bool = False) -> bytes:
        """The frame that greets; its answer is this channel's own business. ``attach``: and asks for a near cache."""
        requests = [operations.hello("kv", token).request, *([operations.ATTACH] if attach else [])]
        data = framed(self._codec.encode(requests))
        self.said_hello, self._attaching = True, attach
        self.waiting.append(_HELLO)
        return data

    def encode(self, frame: Frame) -> bytes:
        """The bytes of a frame, to be sent whole once it stands in ``waiting``.

        Raises ValueError for text that is no Unicode, Refused for more than the daemon takes.
        """
        if len(frame) == 1:
            requests = frame[0].requests(self)
        else:
            requests = [request for delivery in frame for request in delivery.requests(self)]
        payload = self._codec.encode(requests)
        most = self.limits.get("max_frame_bytes")
        if most is not None and len(payload) > most:
            text = f"a frame has at most {most} bytes, this one would have {len(payload)}"
            raise Refused(text, "too_large")
        return framed(payload)

    def encode_unattended(self, requests: Sequence[tuple[object, ...]]) -> bytes:
        """The bytes of a frame whose replies go to nobody, unless ``only_replies`` takes them.

        It stands in ``waiting`` from now on: to be sent whole, or the connection given up. Raises ValueError.
        """
        data = framed(self._codec.encode(requests))
        self.waiting.append((_Unattended(len(requests)),))  # type: ignore[arg-type]  # all of it that is asked here
        return data

    # ------------------------------------------------------------------ receiving

    def only_replies(self, data: bytes) -> list[Any] | None:
        """The replies to the unattended frame, if ``data`` is them and nothing else is under way; the first no error.

        None otherwise; what came has been taken note of. Raises ProtocolError.
        """
        if len(self.waiting) == 1 and not self._left and int.from_bytes(data[:HEADER_BYTES], "big") == len(data) - 4:
            try:
                replies = self._codec.decode(memoryview(data)[HEADER_BYTES:])
            except self._codec.errors as error:
                raise ProtocolError("the daemon's reply is not MessagePack", "bad_reply") from error
            if type(replies) is list and len(replies) == self.waiting[0][0].size:
                self.waiting.popleft()
                return None if type(replies[0]) is dict else replies
        answered: list[tuple[Frame, Any]] = []
        self.receive(data, answered)
        for frame, found in answered:
            settle(frame, found)
        return None

    def receive(self, data: bytes, answered: list[tuple[Frame, Any]]) -> None:
        """Take what came. To ``answered`` go frames with their replies: a list, or the map that refuses the frame.

        Raises ProtocolError if it is not one of kvd's; the connection cannot be used any more then.
        """
        if self._left:
            self._left += data
            if len(self._left) < self._wanted:
                return
            data = bytes(self._left)
            self._left.clear()
        at = 0
        while len(data) - at >= HEADER_BYTES:
            length = int.from_bytes(data[at : at + HEADER_BYTES], "big")
            if length > MAX_REPLY_BYTES:
                raise ProtocolError("what answers does not speak kvd's protocol", "bad_reply")
            end = at + HEADER_BYTES + length
            if end > len(data):
                break
            self._take(data[at + HEADER_BYTES : end], answered)
            at = end
        if at < len(data):
            self._left += data[at:]
            whole = len(data) - at >= HEADER_BYTES
            self._wanted = HEADER_BYTES + (length if whole else 0)

    def _take(self, payload: bytes, answered: list[tuple[Frame, Any]]) -> None:
        """One frame of the daemon's."""
        try:
            reply = self._codec.decode(payload)
        except self._codec.errors as error:
            raise ProtocolError("the daemon's reply is not MessagePack", "bad_reply") from error
        if type(reply) is dict and reply.get("error") == "shutting_down":
            self.finished = True
            return
        if self.events is not None and not self.waiting and type(reply) is list:
            self.events += reply
            return
        if type(reply) is dict and not self.waiting:
            self.refusal = self.refusal or from_reply(reply)  # its last word, and the first counts
            return
        if not self.waiting or type(reply) not in (list, dict):
            raise ProtocolError("the daemon's reply is not one of kvd's protocol", "bad_reply")
        frame = self.waiting[0]
        if frame is _HELLO:
            if self._attaching and type(reply) is list and len(reply) == 2:
                self.attached = reply.pop()
            self._greeted(reply[0] if type(reply) is list and len(reply) == 1 else reply)
        elif type(reply) is list and len(reply) != _size(frame):
            raise ProtocolError("the daemon's reply is not one of kvd's protocol", "bad_reply")
        else:
            answered.append((frame, reply))
        self.waiting.popleft()

    def _greeted(self, reply: object) -> None:
        if type(reply) is dict:
            self.refusal = from_reply(reply)
            return
        try:
            told: list[Any] = list(reply)  # type: ignore[call-overload]  # anything else raises
            self.knowledge.met(str(told[2]), int(told[3]))
            self.limits = dict(told[4])
        except (ValueError, TypeError, IndexError) as error:
            raise ProtocolError("the daemon's answer to hello has an unexpected form", "bad_reply") from error
        self.store_id = self.knowledge.store_id


def _size(frame: Frame) -> int:
    return frame[0].size if len(frame) == 1 else sum(delivery.size for delivery in frame)


def settle(frame: Frame, reply: Any) -> None:  # noqa: ANN401  # a list or a dict
    """Tell those who sent a frame what came of it."""
    if type(reply) is list and len(frame) == 1:
        frame[0].answered(reply)
        return
    if type(reply) is dict:
        for delivery in frame:
            delivery.refused(from_reply(reply))
        return
    at = 0
    for delivery in frame:
        size = delivery.size
        delivery.answered(reply[at : at + size])
        at += size
