"""Error replies: what a handler raises, and the map that goes on the wire."""

from kvd.protocol.errors import CODES
from kvd.store.authors import Author
from kvd.store.errors import (
    ClockWasSet,
    Conflict,
    KeysNotFound,
    NotANumber,
    OutcomeUnknown,
    OutOfMemory,
    SnapshotGone,
    StoreError,
    VersionAhead,
    VersionLost,
)

_MESSAGE_CHARACTERS = 300


class RequestError(Exception):
    """The request is answered with an error map of this code, message and fields."""

    def __init__(self, code: str, message: str, **fields: object) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.fields = fields

    def reply(self) -> dict[str, object]:
        """Return the map to send."""
        return error_reply(self.code, self.message, **self.fields)


def shown(text: str) -> str:
    """Return ``text`` as it can be sent: a path in it may be any bytes."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def error_reply(code: str, message: str, **fields: object) -> dict[str, object]:
    """Return an error map. The message is cut, because a peer must not determine its length."""
    assert code in CODES, code
    message = shown(message)
    if len(message) > _MESSAGE_CHARACTERS:
        message = message[:_MESSAGE_CHARACTERS] + "…"
    return {"error": code, "message": message, **fields}


def internal_error() -> dict[str, object]:
    """Return the error map for a fault in the server itself."""
    return error_reply("internal", "a fault in the server; its log has the details")


def error_for(error: StoreError) -> RequestError:
    """Translate an error of the store into an error reply; raise ``error`` again if the protocol has none for it."""
    match error:
        case KeysNotFound():
            shown = ", ".join(map(repr, error.keys[:5])) + (", …" if len(error.keys) > 5 else "")
            return RequestError("not_found", f"no such key: {shown}; nothing was deleted", keys=error.keys)
        case VersionLost():
            text = f"version {error.version} was lost in a crash; the next that can be read is {error.next_version}"
            return RequestError("snapshot_gone", text, oldest_readable=error.oldest_readable)
        case ClockWasSet():
            text = (
                f"the clock was set {abs(error.by) / 1e6:.0f} s {'back' if error.by < 0 else 'ahead'} after version "
                f"{error.step_version}, so it is not known which version an earlier time means; name a version"
            )
            return RequestError("snapshot_gone", text, oldest_readable=error.oldest_readable)
        case SnapshotGone():
            what = "that time" if error.version is None else f"version {error.version}"
            of_key = "" if error.key is None else f" of {error.key!r}"
            text = f"{what}{of_key} has left the history; the oldest that can be read is {error.oldest_readable}"
            return RequestError("snapshot_gone", text, oldest_readable=error.oldest_readable)
        case VersionAhead():
            text = f"there is no version {error.version} yet; the newest is {error.newest}"
            return RequestError("bad_request", text)
        case Conflict():
            return RequestError("conflict", _conflict_text(error), conflicts=error.changes)
        case NotANumber():
            return RequestError("not_a_number", f"{error.key!r}: {error.reason}; nothing was changed")
        case OutOfMemory():
            return RequestError("out_of_memory", f"{error}; nothing was changed")
        case OutcomeUnknown():
            text = "the server no longer knows whether a write with this id took effect; this one did not"
            return RequestError("outcome_unknown", text, version=error.version)
    raise error


def _conflict_text(error: Conflict) -> str:
    first = error.changes[0]
    current = f"is at version {first.found}" if first.found else "is absent"
    expected = f"was at version {first.expected}" if first.expected else "was absent"
    by = f", changed by {_who(first.author)}" if first.author is not None else ""
    more = f" (and {len(error.changes) - 1} more)" if len(error.changes) > 1 else ""
    return f"{first.key!r} {current} but {expected} when it was read{by}{more}; nothing was written"


def _who(author: Author) -> str:
    return author.name if author.uid is None else f"uid {author.uid} pid {author.pid} ({author.name})"
