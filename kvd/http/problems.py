"""Errors as HTTP expresses them: the status of each error code, and problem details (RFC 9457)."""

from http import HTTPStatus
from typing import Any

import msgspec

# The daemon's own codes (kvd/protocol/errors.py).
STATUS = {
    "bad_request": 400,
    "unsupported_protocol": 400,
    "unauthenticated": 401,
    "forbidden": 403,
    "not_found": 404,
    "not_a_number": 409,
    "conflict": 409,
    "outcome_unknown": 409,
    "snapshot_gone": 410,
    "too_large": 413,
    "reply_too_large": 413,
    "busy": 429,
    "out_of_memory": 503,
    "no_space": 503,
    "shutting_down": 503,
    "internal": 500,
}
RETRY_AFTER_S = 1


class Problem(Exception):
    """The request is answered with this status. ``headers``: further lines of the head, each with its CRLF."""

    def __init__(self, status: int, code: str, detail: str, headers: bytes = b"", **fields: object) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = headers
        self.fields = fields
        if status in (429, 503):
            self.headers += b"Retry-After: %d\r\n" % RETRY_AFTER_S

    def as_json(self) -> bytes:
        """Return the problem details as JSON."""
        common = {"type": "about:blank", "title": HTTPStatus(self.status).phrase, "status": self.status}
        return msgspec.json.encode({**common, "detail": self.detail, "code": self.code, **self.fields})


def problem_of(reply: dict[str, object]) -> Problem:
    """Return the problem that stands for an error reply of the daemon."""
    fields: dict[str, Any] = {name: value for name, value in reply.items() if name not in ("error", "message")}
    code = str(reply["error"])
    return Problem(STATUS[code], code, str(reply["message"]), **fields)


def not_allowed(*methods: str) -> Problem:
    """Return the answer to a method that the route does not have."""
    allow = ", ".join(methods)
    return Problem(405, "method_not_allowed", f"allowed: {allow}", b"Allow: %s\r\n" % allow.encode())
