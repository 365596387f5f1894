"""The errors of a client, by what the caller may conclude from them.

``retryable``: the call has not taken effect, and the same call may succeed later. ``maybe_committed``: it may have
taken effect although it failed. The short-lived command imports this module, so it imports nothing heavy.
"""

from __future__ import annotations

from kvd.protocol.errors import CODES

TYPE_CHECKING = False  # importing typing to ask it would cost the short-lived command 7 ms
if TYPE_CHECKING:
    from collections.abc import Sequence

    from kv.results import ConflictEntry


class KvdError(Exception):
    """The base of all errors of a client. ``code`` is for programs, ``message`` for people; ``fields`` has the rest."""

    retryable = False
    maybe_committed = False

    def __init__(self, message: str, code: str = "", fields: dict[str, object] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.fields = fields or {}
        if code in CODES:
            self.retryable = CODES[code].retryable
            self.maybe_committed = CODES[code].maybe_applied


class Refused(KvdError):
    """The daemon answered with an error; see ``code``."""


class NotFound(Refused):
    """Keys that do not exist; nothing was changed."""

    @property
    def keys(self) -> list[str]:
        """The keys that do not exist."""
        keys = self.fields.get("keys", [])
        return [str(key) for key in keys] if isinstance(keys, list) else []


class Conflict(Refused):
    """A key or range that the commit read has changed since; nothing was written. Read again, and try again."""

    @property
    def conflicts(self) -> list[ConflictEntry]:
        """Up to 100 changed keys, each with the versions expected and found, and the time and author of the latter."""
        from kv.results import conflict_entries

        return conflict_entries(self.fields.get("conflicts"))


class NotANumber(Refused):
    """An increment of a value that is not a decimal number of 64 bits, or whose result is not; nothing was changed."""


class Forbidden(Refused):
    """The daemon does not permit this user to do this, or does not know the user."""


class SnapshotGone(Refused):
    """The requested version has left the history, or belongs to a daemon that has been restarted since."""


class Busy(Refused):
    """The daemon has reached its limit of connections, or of watches; try again later."""


class Unavailable(KvdError):
    """No daemon answered at any of ``tried``; nothing was sent."""

    retryable = True

    def __init__(self, message: str, tried: Sequence[str] = ()) -> None:
        super().__init__(message, "unavailable")
        self.tried = list(tried)


class Stopping(Unavailable):
    """A daemon that is stopping answered the greeting with its goodbye: its successor may answer the next one."""


class ConnectionLost(KvdError):
    """The connection broke, or there was no answer in time, after a request had been sent.

    A read can simply be tried again (``retryable``); a write may or may not have been made (``maybe_committed``).
    """

    def __init__(self, message: str, *, writing: bool, code: str = "connection_lost") -> None:
        super().__init__(message, code)
        self.retryable = not writing
        self.maybe_committed = writing


class CommitUnknown(ConnectionLost):
    """The connection broke after a write had been sent, and the client could not find out whether it was made.

    Not the same as Conflict: before trying again, read the keys that it would have changed.
    """

    def __init__(self, message: str, code: str = "outcome_unknown", fields: dict[str, object] | None = None) -> None:
        super().__init__(message, writing=True, code=code)
        self.fields = fields or {}


class TimedOut(ConnectionLost):
    """The daemon did not answer in time."""

    def __init__(self, message: str, *, writing: bool) -> None:
        super().__init__(message, writing=writing, code="timed_out")


class LockLost(KvdError):
    """The lock is not held any more: the connection that held it ended, or its time to live is over.

    Work done since then may have overlapped with that of the next holder.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message, "lock_lost")


class ForkedClient(KvdError):
    """A transaction, snapshot, watch, pipeline or lock of the parent was used in a forked child.

    The child may use the client itself: begin another with it.
    """

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} belongs to the process that began it, not to its forked child", "forked_client")


class ProtocolError(KvdError):
    """The peer does not speak kvd's protocol, or no version of it that this client knows."""


_BY_CODE: dict[str, type[Refused] | type[CommitUnknown]] = {
    "not_found": NotFound,
    "not_a_number": NotANumber,
    "conflict": Conflict,
    "outcome_unknown": CommitUnknown,
    "forbidden": Forbidden,
    "unauthenticated": Forbidden,
    "snapshot_gone": SnapshotGone,
    "busy": Busy,
}


def from_reply(reply: dict[str, object]) -> KvdError:
    """Return the exception for an error map of the wire."""
    code = str(reply.get("error", "unknown"))
    fields = {name: value for name, value in reply.items() if name not in ("error", "message")}
    return _BY_CODE.get(code, Refused)(str(reply.get("message", code)), code, fields)
