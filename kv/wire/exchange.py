"""A batch of operations and its replies: carried out once, or known not to be, over as many connections as it takes.

A write carries an id, chosen once for all its tries, so that the daemon can tell whether it has made the write already
(see *exactly once* in docs/protocol.md). What follows from the ways in which a try can end:

    answered           done; except outcome_unknown for an id that was never sent before: again, with a newer since
    goodbye            it did not run: again
    not sent whole     it did not run: again, unless it was the connection's first frame (the next would end likewise)
    lost, only reads   as if it had not been sent
    lost, with writes  again, under the same ids and to the same store. Where that is impossible: CommitUnknown
    no answer in time  TimedOut; nothing is sent again

The blocking and the asyncio client drive the same object; no I/O here.
"""

from __future__ import annotations

from kv.errors import CommitUnknown, ConnectionLost, KvdError, ProtocolError, SnapshotGone, TimedOut, from_reply
from kv.wire.operations import PING, only_store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from kv.wire.operations import Operation
    from kv.wire.protocol import ClientProtocol

# The client sends a batch this often at most, goodbyes aside.
_MAX_TRIES = 4


class Exchange:
    """Operations that travel together in one frame, and their results.

    ``results`` has a value or a KvdError for each operation; ``failure`` is set if none of them was answered.
    ``store_id``: the operations mean something to this store only; without it, that of the versions which they name.
    ``waiter``: what the client waits with.
    """

    __slots__ = (
        "_ids",
        "_may_have_run",
        "_since",
        "_tries",
        "_unanswered",
        "done",
        "failure",
        "operations",
        "protocol",
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
        if store_id is None:
            for operation in operations:
                if operation.store_id is not None:
                    store_id = only_store({operation.store_id for operation in operations})
                    break
        self.store_id = store_id
        self.waiter = waiter
        self.protocol: ClientProtocol | None = None  # of the connection on which it was sent last
        self._unanswered: Sequence[int] = range(len(operations))
        self._ids: dict[int, bytes] | None = None
        self._since: int | None = None
        self._tries = 0
        self._may_have_run = False

    @property
    def writing(self) -> bool:
        """Whether any of the operations changes something."""
        return any(operation.writing for operation in self.operations)

    def result(self, number: int = 0) -> Any:  # noqa: ANN401  # each caller knows its operation's type
        """Return the result of an operation. Raises its KvdError, or the failure of the whole exchange."""
        if self.failure is not None:
            raise self.failure
        result = self.results[number]
        if isinstance(result, KvdError):
            raise result
        return result

    # ------------------------------------------------------------------ sending

    @property
    def size(self) -> int:
        """How many requests the next try sends."""
        return len(self._unanswered)

    def requests(self, protocol: ClientProtocol) -> list[tuple[object, ...]]:
        """Return the requests of a try on the connection of ``protocol``."""
        self.protocol = protocol
        return [self._request(number, protocol) for number in self._unanswered]

    def _request(self, number: int, protocol: ClientProtocol) -> tuple[object, ...]:
        operation = self.operations[number]
        if operation.options is None:
            is_void = operation.bound_to is not None and operation.bound_to is not protocol
            # What an operation is bound to ended with its connection. A ping keeps one reply for each operation.
            return PING if is_void else operation.request
        if self._ids is None:
            self._ids = {}
            self._since = protocol.store_view.version
        id_ = self._ids.get(number)
        if id_ is None:
            id_ = self._ids[number] = protocol.store_view.new_id()
        return (*operation.request, {**operation.options, "id": id_, "since": self._since})

    # ------------------------------------------------------------------ ends of a try

    def answered(self, replies: Sequence[object]) -> None:
        """Take a reply to each of the requests sent last."""
        if len(replies) == 1 and type(replies[0]) is not dict:
            # The commonest case, without the detour.
            number = self._unanswered[0]
            self.results[number] = self._read(self.operations[number], replies[0])
            self.done = True
            return
        again: list[int] = []
        for number, reply in zip(self._unanswered, replies, strict=True):
            operation = self.operations[number]
            if again and not operation.writing:
                again.append(number)  # it must run after a write that is sent again
            elif type(reply) is not dict:
                self.results[number] = self._read(operation, reply)
            elif self._may_retry_with_newer_since(reply):
                again.append(number)
            else:
                self.results[number] = from_reply(reply)
        self._tries += 1
        self._unanswered = again
        self.done = not again

    def _read(self, operation: Operation[Any], reply: object) -> object:
        try:
            if not operation.has_positions or self.protocol is None:
                return operation.read(reply)
            view = self.protocol.store_view
            if operation.options is not None and type(reply) is int:
                view.observe_version(reply)
            return operation.read(reply, view.position)
        except KvdError as error:
            return error
        except (ValueError, TypeError, IndexError) as error:
            return ProtocolError(f"the daemon's reply has an unexpected form: {error}", "bad_reply")

    def _may_retry_with_newer_since(self, reply: dict[str, object]) -> bool:
        """Whether this ``outcome_unknown`` is safe to retry with a newer ``since``: the id was never sent before."""
        version = reply.get("version")
        if reply.get("error") != "outcome_unknown" or type(version) is not int:
            return False
        if self._may_have_run or self._tries >= _MAX_TRIES or version == self._since:
            return False
        self._since = version
        if self.protocol is not None:
            self.protocol.store_view.observe_version(version)
        return True

    def refused(self, error: KvdError) -> None:
        """End with ``error``: the daemon refused the whole frame, or the client could not send it."""
        if self._may_have_run:
            error = CommitUnknown(f"the connection broke after a write had been sent, and then: {error.message}")
        self._fail(error)

    def protocol_broken(self, error: ProtocolError) -> None:
        """End with ``error``: the peer does not follow the protocol."""
        failure = ProtocolError(error.message, error.code)
        failure.maybe_committed = self.writing
        self._fail(failure)

    def closed(self) -> None:
        """End because the program has closed the client meanwhile."""
        self._fail(ConnectionLost("the client was closed", writing=self.writing))

    def not_sent(self, address: str, reason: str, *, fresh: bool) -> None:
        """Note that the connection broke before all was sent. ``fresh``: it was the connection's first frame."""
        self._tries += 1
        if fresh or self._tries >= _MAX_TRIES:
            self.refused(ConnectionLost(_broke(address, reason), writing=False))

    def lost(self, address: str, reason: str, *, fresh: bool) -> None:
        """Note that the connection broke after all was sent."""
        if not self.writing:
            self.not_sent(address, reason, fresh=fresh)
            return
        self._tries += 1
        text = _broke(address, reason)
        if any(operation.writing and operation.options is None for operation in self.operations):
            self._fail(ConnectionLost(text, writing=True))
            return
        self._may_have_run = True
        store_id = self.protocol.store_id if self.protocol is not None else None
        if self._since is None and self.protocol is not None:
            # Sent along with hello, so it ran after hello. Without since, a forgotten id would be taken for a new one.
            self._since = self.protocol.greeted_at
        if store_id is None:
            self._fail(CommitUnknown(f"{text} before it had said which store it has; the write may have been made"))
        elif any((operation.options or {}).get("ephemeral") for operation in self.operations):
            # Made or not: the keys have gone with the connection.
            self._fail(CommitUnknown(f"{text}, and ephemeral keys have gone with it if they had been written"))
        elif self._tries >= _MAX_TRIES:
            self._fail(CommitUnknown(f"{text} again and again; the write may have been made"))
        self.store_id = store_id

    def store_changed(self) -> None:
        """End because the daemon that answers now has another store than the one meant."""
        text = "the daemon has another store now: it was restarted, or restored, and what it held before is gone"
        if self._may_have_run:
            self._fail(CommitUnknown(f"{text}; whether the write had been made before is not known"))
        else:
            self._fail(SnapshotGone(text, "snapshot_gone"))

    def timed_out(self, address: str, seconds: float | None, *, sent: bool) -> None:
        """End because there was no answer in time."""
        text = f"no answer from {address} within {seconds or 0:g} s"
        self._fail(TimedOut(text, writing=self._may_have_run or (sent and self.writing)))

    def _fail(self, error: KvdError) -> None:
        self.failure = error
        self.done = True


def _broke(address: str, reason: str) -> str:
    text = f"the connection to {address} broke"
    return f"{text}: {reason}" if reason else text
