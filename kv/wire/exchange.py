"""A batch of operations on its way to the daemon: done once, or known not to be, over as many connections as it takes.

A write carries an id, chosen once for all its tries, so that the daemon can tell whether it has made it already (see
*exactly once* in docs/protocol.md). What may be concluded from the ways in which a try can end:

    answered           done; except outcome_unknown for an id that was never sent before: again, with a younger since
    goodbye            it did not run: again
    not sent whole     it did not run: again, unless it was the connection's first frame (the next would end likewise)
    lost, only reads   as if it had not been sent
    lost, with writes  again, under the same ids and to the same store. Where that cannot be: CommitUnknown
    no answer in time  TimedOut; nothing is sent again

Blocking and asyncio clients drive the same object; no I/O here.
"""

from __future__ import annotations

import os

from kv.errors import CommitUnknown, ConnectionLost, KvdError, ProtocolError, SnapshotGone, TimedOut, from_reply
from kv.wire.operations import PING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from kv.wire.operations import Operation
    from kv.wire.protocol import ClientProtocol

# A batch is not sent more often than this, goodbyes aside.
_MAX_TRIES = 4
_PREFIX_BYTES = 9


class StoreView:
    """What one process knows of the daemon's store, and the ids it gives to writes."""

    __slots__ = ("_last_id", "_prefix", "store_id", "version")

    def __init__(self) -> None:
        self.store_id: str | None = None
        self.version: int | None = None  # the highest known of that store
        # An id is 16 bytes that nobody else chooses: random ones, and a number.
        self._prefix = os.urandom(_PREFIX_BYTES)
        self._last_id = 0

    def new_id(self) -> bytes:
        """An id for a write."""
        self._last_id += 1
        return self._prefix + self._last_id.to_bytes(16 - _PREFIX_BYTES, "big")

    def met(self, store_id: str, version: int) -> None:
        """The daemon has said which store it has."""
        if store_id != self.store_id:
            self.store_id, self.version = store_id, version
        else:
            self.saw(version)

    def saw(self, version: int) -> None:
        """The store has come to ``version``."""
        if self.version is None or version > self.version:
            self.version = version


class Exchange:
    """Operations that travel together in one frame, and what became of them.

    ``results`` has a value or a KvdError for each; ``failure`` is what kept them all from being answered. ``store_id``:
    they mean something to this store only. ``waiter`` is whatever the client waits with.
    """

    __slots__ = (
        "_ids",
        "_since",
        "_tries",
        "_unanswered",
        "_uncertain",
        "channel",
        "done",
        "failure",
        "operations",
        "results",
        "store_id",
        "waiter",
    )

    def __init__(
        self,
        operations: Sequence[Operation[Any]],
        store_id: str | None = None,
        waiter: Any = None,  # noqa: ANN401
    ) -> None:
        self.operations = operations
        self.results: list[Any] = [None] * len(operations)
        self.failure: KvdError | None = None
        self.done = False
        self.store_id = store_id
        self.waiter = waiter
        self.channel: ClientProtocol | None = None  # on which the last answers came
        self._unanswered: Sequence[int] = range(len(operations))
        self._ids: dict[int, bytes] | None = None
        self._since: int | None = None
        self._tries = 0
        self._uncertain = False  # whether it may have run already

    @property
    def writing(self) -> bool:
        """Whether it changes anything."""
        return any(operation.writing for operation in self.operations)

    def result(self, number: int = 0) -> Any:  # noqa: ANN401  # each caller knows its operation's type
        """What an operation came to. Raises the KvdError that it, or all of them, ended with."""
        if self.failure is not None:
            raise self.failure
        result = self.results[number]
        if isinstance(result, KvdError):
            raise result
        return result

    # ------------------------------------------------------------------ sending

    @property
    def size(self) -> int:
        """How many requests are to be sent."""
        return len(self._unanswered)

    def requests(self, channel: ClientProtocol) -> list[tuple[object, ...]]:
        """What to send on ``channel``, once more or for the first time."""
        self.channel = channel
        return [self._request(number, channel) for number in self._unanswered]

    def _request(self, number: int, channel: ClientProtocol) -> tuple[object, ...]:
        operation = self.operations[number]
        if operation.how is None:
            elsewhere = operation.held_on is not None and operation.held_on is not channel
            # What was held on a connection ended with it. Something has to be sent: each operation has its reply.
            return PING if elsewhere else operation.request
        if self._ids is None:
            self._ids = {}
            self._since = channel.knowledge.version
        id_ = self._ids.get(number)
        if id_ is None:
            id_ = self._ids[number] = channel.knowledge.new_id()
        return (*operation.request, {**operation.how, "id": id_, "since": self._since})

    # ------------------------------------------------------------------ ends of a try

    def answered(self, replies: Sequence[object]) -> None:
        """Each of the requests sent last has its reply."""
        if len(replies) == 1 and type(replies[0]) is not dict:
            # The commonest of all, without the detour.
            number = self._unanswered[0]
            self.results[number] = self._read(self.operations[number], replies[0])
            self.done = True
            return
        again: list[int] = []
        for number, reply in zip(self._unanswered, replies, strict=True):
            operation = self.operations[number]
            if again and not operation.writing:
                again.append(number)  # it was to run after a write that has yet to be made
            elif type(reply) is not dict:
                self.results[number] = self._read(operation, reply)
            elif self._may_say_younger(reply):
                again.append(number)
            else:
                self.results[number] = from_reply(reply)
        self._tries += 1
        self._unanswered = again
        self.done = not again

    def _read(self, operation: Operation[Any], reply: object) -> object:
        if operation.how is not None and type(reply) is int and self.channel is not None:
            self.channel.knowledge.saw(reply)
        try:
            return operation.read(reply)
        except KvdError as error:
            return error
        except (ValueError, TypeError, IndexError) as error:
            return ProtocolError(f"the daemon's reply has an unexpected form: {error}", "bad_reply")

    def _may_say_younger(self, reply: dict[str, object]) -> bool:
        """Whether an error only says that ``since`` was too old, of an id that certainly never ran."""
        version = reply.get("version")
        if reply.get("error") != "outcome_unknown" or type(version) is not int:
            return False
        if self._uncertain or self._tries >= _MAX_TRIES or version == self._since:
            return False
        self._since = version
        if self.channel is not None:
            self.channel.knowledge.saw(version)
        return True

    def refused(self, error: KvdError) -> None:
        """The frame was refused as a whole, or could not be sent: this try did nothing."""
        if self._uncertain:
            error = CommitUnknown(f"the connection broke after a write had been sent, and then: {error.message}")
        self._fail(error)

    def protocol_broken(self, error: ProtocolError) -> None:
        """What answered is no kvd, or has lost its way."""
        failure = ProtocolError(error.message, error.code)
        failure.maybe_committed = self.writing
        self._fail(failure)

    def closed(self) -> None:
        """The program has closed the client meanwhile."""
        self._fail(ConnectionLost("the client was closed", writing=self.writing))

    def not_sent(self, address: str, reason: str, *, fresh: bool) -> None:
        """The connection broke before all of it was sent. ``fresh``: it was the connection's first frame."""
        self._tries += 1
        if fresh or self._tries >= _MAX_TRIES:
            self.refused(ConnectionLost(_broke(address, reason), writing=False))

    def lost(self, address: str, reason: str, *, fresh: bool) -> None:
        """The connection broke after it was sent."""
        if not self.writing:
            self.not_sent(address, reason, fresh=fresh)
            return
        self._tries += 1
        text = _broke(address, reason)
        if any(operation.writing and operation.how is None for operation in self.operations):
            self._fail(ConnectionLost(text, writing=True))
            return
        self._uncertain = True
        store_id = self.channel.store_id if self.channel is not None else None
        if store_id is None:
            self._fail(CommitUnknown(f"{text} before it had said which store it has; the write may have been made"))
        elif any((operation.how or {}).get("ephemeral") for operation in self.operations):
            # Whether made or not: it would be gone by now.
            self._fail(CommitUnknown(f"{text}, and ephemeral keys have gone with it if they had been written"))
        elif self._tries >= _MAX_TRIES:
            self._fail(CommitUnknown(f"{text} again and again; the write may have been made"))
        self.store_id = store_id

    def elsewhere(self) -> None:
        """The store that answers now is another than the one it is meant for."""
        text = "the daemon has been restarted, and what it held before is gone"
        if self._uncertain:
            self._fail(CommitUnknown(f"{text}; whether the write had been made before is not known"))
        else:
            self._fail(SnapshotGone(text, "snapshot_gone"))

    def timed_out(self, address: str, seconds: float | None, *, sent: bool) -> None:
        """The time was over."""
        text = f"no answer from {address} within {seconds or 0:g} s"
        self._fail(TimedOut(text, writing=self._uncertain or (sent and self.writing)))

    def _fail(self, error: KvdError) -> None:
        self.failure = error
        self.done = True


def _broke(address: str, reason: str) -> str:
    text = f"the connection to {address} broke"
    return f"{text}: {reason}" if reason else text
