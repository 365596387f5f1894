"""The input of one HTTP connection: bytes in, whole requests out in order, and every limit on them.

        head ──complete, admitted──▶ body ──complete──▶ waiting ──▶ (the session takes it)
          └─── refused, or too long ───┴──▶ a refusal waits in its place. If it is not clear where the next request
                                            begins, or none may follow, all further input is discarded.

The parser is llhttp (httptools), which refuses all input that can be read in two ways: both kinds of length, a length
twice, folded lines, bare line feeds.

**The fast path**: a client that keeps its connection sends the same head again and again, except for the path. Once
llhttp has parsed such a head as one complete, plain, admitted GET, the next input need not be parsed if it has the same
bytes after the path, and its path has only characters that need no decoding: then it is such a GET, too.
"""

from collections import deque
from collections.abc import Callable

import httptools

from kvd.http.problems import Problem
from kvd.http.requests import Request

MAX_HEAD_BYTES = 32 * 1024
MAX_HEADERS = 100
# About the memory of a request that waits, without its body.
REQUEST_BYTES = 1024
_SHORT = b"GET /v1/"
_SHORT_BYTES = len(_SHORT)
_TARGET_END = b" HTTP/1.1\r\n"
_PLAIN = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$&'()*+,;=:@/"
# Each of these may occur only once: kvd and a proxy could read two occurrences in different ways.
_ONCE = frozenset((b"host", b"authorization", b"content-type", b"origin", b"expect"))


def short_key(data: bytes, tail: bytes) -> str:
    """Return the key of a GET that may take the fast path, else "". ``tail``: the end of the previous such GET."""
    if data.endswith(tail) and data.startswith(_SHORT):
        name = data[_SHORT_BYTES : -len(tail)]
        if not name.translate(None, _PLAIN):
            return name.decode("ascii")
    return ""


class Reader:
    """The requests of one connection.

    ``max_body_bytes`` returns the maximum length of the body of a request. ``admit`` is called with each request whose
    head has arrived, and raises Problem to refuse it. ``waiting``: the requests to answer, in order. ``request``: the
    request that is being read, once its head has arrived; between two requests, the last one. ``tail``: what the next
    GET must end with to take the fast path; None if it cannot take it.
    """

    __slots__ = (
        "_admit",
        "_body",
        "_head_bytes",
        "_headers",
        "_max_body_bytes",
        "_parser",
        "_target",
        "_unparsed_bytes",
        "is_dropping",
        "is_reading",
        "request",
        "tail",
        "waiting",
    )

    def __init__(self, max_body_bytes: Callable[[Request], int], admit: Callable[[Request], None]) -> None:
        self._max_body_bytes = max_body_bytes
        self._admit = admit
        self._parser = httptools.HttpRequestParser(self)
        # The message that is being read: its target, headers and body so far.
        self.is_reading = False
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._head_bytes = 0
        self._unparsed_bytes = 0
        self.request: Request | None = None
        self._body = bytearray()
        self.is_dropping = False  # all further input is discarded
        self.waiting: deque[Request] = deque()
        self.tail: bytes | None = None

    # ------------------------------------------------------------------ called by the session

    @property
    def buffer_bytes(self) -> int:
        """The bytes that it buffers for its peer."""
        waiting_bytes = sum(len(request.body) + REQUEST_BYTES for request in self.waiting)
        return len(self._body) + self._head_bytes + waiting_bytes

    @property
    def promised_bytes(self) -> int:
        """The declared length of the body that is being read; 0 without one."""
        length = self._headers.get(b"content-length", b"")
        return int(length) if self.request is not None and length else 0

    def feed(self, data: bytes) -> None:
        """Parse more input."""
        may_be_plain = not self.is_reading and data.startswith(b"GET ") and data.find(b"\r\n\r\n") == len(data) - 4
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.is_dropping = True  # no upgrade is supported; this request is answered, and it is the last one
        except httptools.HttpParserError as error:
            if not self.is_dropping:
                status = 405 if isinstance(error, httptools.HttpParserInvalidMethodError) else 400
                self.refuse(Problem(status, "bad_request", f"this is not an HTTP request: {error}"))
        if self.is_reading and self.request is None and not self.is_dropping:
            # llhttp keeps a header that has not ended: what it was given bounds it.
            self._unparsed_bytes += len(data)
            if self._unparsed_bytes > 2 * MAX_HEAD_BYTES:
                self._refuse_head()
        self.tail = self._tail_of(data) if may_be_plain else None

    def refuse(self, problem: Problem, *, closes: bool = True) -> None:
        """Answer with ``problem`` after all waiting requests. ``closes``: also discard all further input."""
        request = self.request
        if request is None or not self.is_reading:
            request = self.request = Request("GET", self._target or b"/v2/", {})
        request.refusal, request.closes = problem, closes or not self._parser.should_keep_alive()
        if request.closes:
            self.drop()
            self.waiting.append(request)

    def drop(self) -> None:
        """Discard all further input."""
        self.is_dropping = True
        self._body = bytearray()

    # ------------------------------------------------------------------ called by the parser

    def on_message_begin(self) -> None:
        self.is_reading = True
        self._target = b""
        self._headers = {}
        self._head_bytes = self._unparsed_bytes = 0
        self.request = None

    def on_url(self, url: bytes) -> None:
        self._target += url
        self._head_bytes += len(url)
        if self._head_bytes > MAX_HEAD_BYTES and not self.is_dropping:
            self._refuse_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.is_dropping or self.request is not None:  # trailers after the last chunk are ignored
            return
        name = name.lower()
        before = self._headers.get(name)
        if before is not None:
            if name in _ONCE:
                self.refuse(Problem(400, "bad_request", f"the header {name.decode()} occurs twice"))
                return
            value = before + b", " + value
        self._headers[name] = value
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MAX_HEAD_BYTES or len(self._headers) > MAX_HEADERS:
            self._refuse_head()

    def on_headers_complete(self) -> None:
        if self.is_dropping:
            return
        parser, headers = self._parser, self._headers
        version = parser.get_http_version()
        try:
            self.request = request = Request(parser.get_method().decode("ascii"), self._target, headers)
            request.is_http10 = version == "1.0"
            self._check_head(request, version)
            self._admit(request)
        except Problem as problem:
            # Refused before its body arrives, so that the peer does not send it.
            # A peer without a valid token gets one guess for each connection.
            self.refuse(problem, closes=self._has_body() or problem.status == 401)
            return
        request.closes = not parser.should_keep_alive() or parser.should_upgrade()

    def on_body(self, body: bytes) -> None:
        if self.is_dropping or self.request is None or self.request.refusal is not None:
            return
        if len(self._body) + len(body) > (max_bytes := self._max_body_bytes(self.request)):
            self.refuse(_too_long(max_bytes))
        else:
            self._body += body

    def on_message_complete(self) -> None:
        self.is_reading = False
        if self.is_dropping or self.request is None:
            return
        request = self.request
        request.body = bytes(self._body)
        self._body = bytearray()
        self._head_bytes = 0
        self.waiting.append(request)
        if request.closes:
            self.is_dropping = True

    # ------------------------------------------------------------------ heads

    def _tail_of(self, data: bytes) -> bytes | None:
        """Return the bytes after the path of a complete plain GET. The next GET that ends so takes the fast path."""
        request = self.request
        if request is None or self.is_reading or len(self.waiting) != 1 or request.refusal or request.closes:
            return None
        if request.is_http10 or self._has_body() or b"expect" in request.headers:
            return None
        at = data.find(b"\r\n") - len(_TARGET_END) + 2
        return data[at:] if data.startswith(_TARGET_END, at) and data[at - 1 : at] != b" " else None

    def _has_body(self) -> bool:
        length = self._headers.get(b"content-length", b"0")
        return length.strip(b"0") != b"" or b"transfer-encoding" in self._headers

    def _check_head(self, request: Request, version: str) -> None:
        headers = request.headers
        if version not in ("1.0", "1.1"):
            raise Problem(505, "bad_request", "only HTTP/1.0 and HTTP/1.1 are supported")
        coding = headers.get(b"transfer-encoding")
        if coding is not None and (version == "1.0" or coding.lower() != b"chunked"):
            raise Problem(
                501 if version == "1.1" else 400,
                "bad_request",
                "the only transfer coding supported is chunked, in HTTP/1.1",
            )
        if headers.get(b"expect", b"100-continue").lower() != b"100-continue":
            raise Problem(417, "bad_request", "the only expectation supported is 100-continue")
        length, max_bytes = headers.get(b"content-length", b"0"), self._max_body_bytes(request)
        if len(length) > 18 or int(length) > max_bytes:
            raise _too_long(max_bytes)

    def _refuse_head(self) -> None:
        self.refuse(Problem(431, "too_large", f"a request's head has at most {MAX_HEAD_BYTES} bytes"))


def _too_long(max_bytes: int) -> Problem:
    return Problem(413, "too_large", f"the body of this request has at most {max_bytes} bytes")
