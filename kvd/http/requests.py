"""One HTTP request, and how its target becomes a path, a query and a key."""

from kvd.http.problems import Problem
from kvd.requests.peer import Peer

_HEX = b"0123456789abcdefABCDEF"


class Request:
    """A request; its body is complete once the request is waiting for its answer.

    ``path`` is not percent-decoded, ``query`` is the part after the first ``?`` (None without one), header names are
    lower case. ``refusal``: why it does not run. ``closes``: it is the last request answered on this connection.
    """

    __slots__ = ("body", "closes", "headers", "is_http10", "method", "path", "peer", "query", "refusal")

    def __init__(self, method: str, target: bytes, headers: dict[bytes, bytes]) -> None:
        self.method = method
        target = _origin_form(target, headers).partition(b"#")[0]
        path, mark, query = target.partition(b"?")
        self.path = path
        self.query: bytes | None = query if mark else None
        self.headers = headers
        self.body = b""
        self.peer: Peer | None = None
        self.refusal: Problem | None = None
        self.closes = False
        self.is_http10 = False

    @property
    def is_head(self) -> bool:
        """Whether the client wants only the head of the answer."""
        return self.method == "HEAD"

    @property
    def verb(self) -> str:
        """The method; HEAD counts as GET."""
        return "GET" if self.method == "HEAD" else self.method

    def parameters(self, *known: str) -> dict[str, str]:
        """Return the parameters of the query. Raises Problem for a parameter that is not ``known``, or occurs twice."""
        values: dict[str, str] = {}
        for pair in (self.query or b"").split(b"&"):
            if not pair:
                continue
            name, _, value = (decoded(part.replace(b"+", b" "), "the query") for part in pair.partition(b"="))
            if name not in known:
                names = ", ".join(known) or "none"
                raise Problem(400, "bad_request", f"no such parameter: {name!r}; this route has {names}")
            if name in values:
                raise Problem(400, "bad_request", f"the parameter {name!r} is given twice")
            values[name] = value
        return values


def _origin_form(target: bytes, headers: dict[bytes, bytes]) -> bytes:
    """Split the target into path and query. In the absolute form (RFC 9112), which proxies use, the host leads."""
    scheme, mark, rest = target.partition(b"://")
    if not mark or scheme.lower() not in (b"http", b"https"):
        return target
    authority, slash, path = rest.partition(b"/")
    headers[b"host"] = authority
    return slash + path if slash else b"/"


def decoded(text: bytes, what: str) -> str:
    """Decode percent-encoded text. Raises Problem if it is not UTF-8, or a % lacks its two hexadecimal digits."""
    pieces = text.split(b"%")
    result = bytearray(pieces[0])
    for piece in pieces[1:]:
        if len(piece) < 2 or piece[0] not in _HEX or piece[1] not in _HEX:
            raise Problem(
                400, "bad_request", f"{what} has a % without two hexadecimal digits after it; encode a % as %25"
            )
        result.append(int(piece[:2], 16))
        result += piece[2:]
    try:
        return result.decode()
    except UnicodeDecodeError:
        raise Problem(400, "bad_request", f"{what} is not UTF-8") from None
