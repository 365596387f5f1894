"""The error codes of the wire, append-only: each says what a client may conclude from it.

Imported by short-lived clients, so it imports nothing.
"""


class ErrorCode:
    """What one code of an error reply means.

    ``retryable``: the same request may succeed later, unchanged. ``maybe_applied``: it may have taken effect.
    """

    __slots__ = ("code", "maybe_applied", "meaning", "retryable")

    def __init__(self, code: str, meaning: str, *, retryable: bool = False, maybe_applied: bool = False) -> None:
        self.code = code
        self.meaning = meaning
        self.retryable = retryable
        self.maybe_applied = maybe_applied


CODES: dict[str, ErrorCode] = {
    entry.code: entry
    for entry in (
        ErrorCode("bad_request", "the frame or the request does not follow the protocol; nothing ran"),
        ErrorCode("unsupported_protocol", "the server does not speak the protocol version that hello asked for"),
        ErrorCode("unauthenticated", "a TCP connection must say hello with a valid token first"),
        ErrorCode("forbidden", "the peer may not do this; nothing ran"),
        ErrorCode("not_found", "a key does not exist; nothing was changed"),
        ErrorCode("not_a_number", "the value to be incremented is not a number of 64 bits, or would not be one"),
        ErrorCode("conflict", "something that the commit read has changed since; nothing was written"),
        ErrorCode(
            "outcome_unknown",
            "whether an earlier write with this id took effect is not remembered; this one did not",
            maybe_applied=True,
        ),
        ErrorCode("snapshot_gone", "the version asked for has left the history window"),
        ErrorCode("too_large", "a key, a value, a count or a frame is over its limit; nothing was changed"),
        ErrorCode("reply_too_large", "the request ran, its reply did not fit into the frame", maybe_applied=True),
        ErrorCode("out_of_memory", "there is no room in memory for the write; nothing was changed", retryable=True),
        ErrorCode("no_space", "there is no room on the disk for the commit; nothing was changed", retryable=True),
        ErrorCode("busy", "the server has as many connections as it may have", retryable=True),
        ErrorCode("shutting_down", "the server is stopping; the request did not run", retryable=True),
        ErrorCode("internal", "a fault in the server, written to its logging", maybe_applied=True),
    )
}
