"""HTTP answers, and their encoding as bytes."""

import time
from http import HTTPStatus

import msgspec

from kvd.http.problems import Problem
from kvd.http.requests import Request

TEXT = b"text/plain"
ERROR_TEXT = b"text/plain; charset=utf-8"
JSON = b"application/json"
PROBLEM = b"application/problem+json"
BYTES = b"application/octet-stream"

# What the decoder raises for a body that is not the JSON that it should be, or is nested too deeply.
JSON_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_LINES = {status.value: b"HTTP/1.1 %d %s\r\n" % (status.value, status.phrase.encode()) for status in HTTPStatus}
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
# Because a browser must not take a value for a page, nor show it in a page of another origin.
_ALWAYS = b"X-Content-Type-Options: nosniff\r\nCross-Origin-Resource-Policy: same-origin\r\n"


class Response:
    """An answer with its body. ``headers``: further lines, each with its CRLF."""

    __slots__ = ("body", "content_type", "headers", "status")

    def __init__(self, status: int, body: bytes = b"", content_type: bytes = b"", headers: bytes = b"") -> None:
        self.status = status
        self.body = body
        self.content_type = content_type
        self.headers = headers


class BoundedJson:
    """The items of a JSON answer of at most ``max_bytes``: JSON may take six times the bytes of a value."""

    __slots__ = ("_left_bytes", "_max_bytes")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = self._left_bytes = max_bytes

    def encoded(self, item: object) -> msgspec.Raw:
        """Return an item as it stands in the answer. Raises Problem if the items so far do not fit."""
        text = msgspec.json.encode(item)
        self._left_bytes -= len(text) + 1
        if self._left_bytes < 0:
            raise Problem(413, "reply_too_large", f"the answer does not fit into {self._max_bytes} bytes as JSON")
        return msgspec.Raw(text)


class Dates:
    """The Date header (RFC 9110), formatted once a second."""

    __slots__ = ("_of", "line")

    def __init__(self) -> None:
        self._of = 0
        self.line = b""

    def now(self) -> bytes:
        """Return the header line."""
        second = int(time.time())
        if second != self._of:
            at = time.gmtime(second)
            date = (
                f"{_DAYS[at.tm_wday]}, {at.tm_mday:02} {_MONTHS[at.tm_mon - 1]} {at.tm_year} {time.strftime('%T', at)}"
            )
            self._of, self.line = second, f"Date: {date} GMT\r\n".encode()
        return self.line


def head(response: Response, date: bytes, *, connection: bytes = b"") -> bytes:
    """Return the head of an answer. ``connection``: the Connection line, or nothing."""
    lines = [_LINES[response.status], date, _ALWAYS, response.headers, connection]
    if response.content_type:
        lines.append(b"Content-Type: %s\r\n" % response.content_type)
    if response.status not in (204, 304):
        lines.append(b"Content-Length: %d\r\n" % len(response.body))
    lines.append(b"\r\n")
    return b"".join(lines)


def stream_head(date: bytes, *, is_chunked: bool) -> bytes:
    """Return the head of a stream of events, which ends with its connection: chunked, or bare for HTTP/1.0."""
    return _EVENTS_HEAD + date + (b"Transfer-Encoding: chunked\r\n\r\n" if is_chunked else b"\r\n")


_EVENTS_HEAD = b"%s%sCache-Control: no-store\r\nConnection: close\r\nContent-Type: text/event-stream\r\n" % (
    _LINES[200],
    _ALWAYS,
)
# The head of the most common answer, without its date, length and body.
VALUE_HEAD = _LINES[200] + _ALWAYS + b"Content-Type: text/plain\r\n"


def error_response(request: Request | None, problem: Problem) -> Response:
    """Return a problem as an answer: problem details, or one line of text on the routes of /v1/."""
    if request is None or request.path.startswith(b"/v2/") or request.path == b"/openapi.json":
        return Response(problem.status, problem.as_json(), PROBLEM, problem.headers)
    if problem.status == 405:
        return Response(405, b"", b"", problem.headers)
    detail = "key not found" if problem.code == "not_found" and request.path.startswith(b"/v1/") else problem.detail
    return Response(problem.status, detail.encode() + b"\n", ERROR_TEXT, problem.headers)
