"""What can go wrong for a client, by what the caller may conclude from it.

``retryable``: the same call may succeed later, unchanged, and has not taken effect. ``maybe_committed``: it may have
taken effect all the same. Imported by the short-lived command, so it imports nothing heavy.
"""

from __future__ import annotations

from kvd.protocol.errors import CODES

TYPE_CHECKING = False  # importing typing to ask it would cost the short-lived command 7 ms
if TYPE_CHECKING:
    from collections.abc import Sequence


class KvdError(Exception):
    """Base of all errors of a client. ``code`` is for programs, ``message`` for people, ``fields`` the rest."""

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


class Forbidden(Refused):
    """The daemon does not let this user do this, or does not know who it is."""


class SnapshotGone(Refused):
    """The version asked for has left the history."""


class Busy(Refused):
    """The daemon has as many connections as it may have; try again later."""


class Unavailable(KvdError):
    """No daemon answered at any of ``tried``; nothing was sent."""

    retryable = True

    def __init__(self, message: str, tried: Sequence[str] = ()) -> None:
        super().__init__(message, "unavailable")
        self.tried = list(tried)


class ConnectionLost(KvdError):
    """The connection broke, or the time was over, after a request had been sent.

    A read can simply be tried again (``retryable``); a write may or may not have happened (``maybe_committed``).
    """

    def __init__(self, message: str, *, writing: bool, code: str = "connection_lost") -> None:
        super().__init__(message, code)
        self.retryable = not writing
        self.maybe_committed = writing


class TimedOut(ConnectionLost):
    """The daemon did not answer in time."""

    def __init__(self, message: str, *, writing: bool) -> None:
        super().__init__(message, writing=writing, code="timed_out")


class ProtocolError(KvdError):
    """What answered does not speak kvd's protocol, or not a version this client knows."""


_BY_CODE: dict[str, type[Refused]] = {
    "not_found": NotFound,
    "forbidden": Forbidden,
    "unauthenticated": Forbidden,
    "snapshot_gone": SnapshotGone,
    "busy": Busy,
}


def from_reply(reply: dict[str, object]) -> KvdError:
    """The exception for an error map of the wire."""
    code = str(reply.get("error", "unknown"))
    fields = {name: value for name, value in reply.items() if name not in ("error", "message")}
    return _BY_CODE.get(code, Refused)(str(reply.get("message", code)), code, fields)
