"""A raw connection that speaks HTTP, and shows every byte of a response."""

import json
import socket
from collections.abc import Iterator
from typing import Any, Self

from tests.harness.waiting import DEADLINE_S


class HttpResponse:
    """One response: its status, its headers with names in lower case, its body."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def json(self) -> Any:  # noqa: ANN401 - whatever the body says
        return json.loads(self.body)

    def __repr__(self) -> str:
        return f"{self.status} {self.headers} {self.body[:300]!r}"


class HttpPeer:
    """The client's end of a connection that speaks HTTP."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.socket.settimeout(DEADLINE_S)
        self.stream = connected.makefile("rb")

    @classmethod
    def unix(cls, path: str) -> Self:
        """Connect to a Unix socket."""
        connecting = socket.socket(socket.AF_UNIX)
        connecting.connect(path)
        return cls(connecting)

    @classmethod
    def tcp(cls, port: int) -> Self:
        """Connect to a port of the loopback."""
        return cls(socket.create_connection(("127.0.0.1", port)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, whatever is under way."""
        self.stream.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send these bytes."""
        self.socket.sendall(data)

    def ask(self, method: str, target: str, body: bytes | None = None, **headers: str) -> HttpResponse:
        """Send one request as a client would write it; its response. Header names have _ for -."""
        self.send(http_request(method, target, body, **headers))
        return self.response(is_head=method == "HEAD")

    def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers; EOFError if nothing more arrives."""
        try:
            line = self.stream.readline()
        except ConnectionResetError:
            line = b""
        if not line:
            raise EOFError
        version, status, _ = line.split(b" ", 2)
        assert version == b"HTTP/1.1"
        headers = {}
        while (line := self.stream.readline()) != b"\r\n":
            assert line.endswith(b"\r\n"), line
            name, _, value = line.decode("latin-1").strip().partition(": ")
            assert name.lower() not in headers, f"{name} twice"
            headers[name.lower()] = value
        return int(status), headers

    def response(self, *, is_head: bool = False) -> HttpResponse:
        """The next response. ``is_head``: it is the response to HEAD, which has no body."""
        status, headers = self.head()
        has_body = not is_head and status not in (100, 204, 304)
        body = self.stream.read(int(headers["content-length"])) if has_body else b""
        return HttpResponse(status, headers, body)

    def chunks(self) -> Iterator[bytes]:
        """The chunks of a body, to the last."""
        while size := int(self.stream.readline(), 16):
            yield self.stream.read(size)
            assert self.stream.read(2) == b"\r\n"

    def is_over(self) -> bool:
        """Whether the stream ends here; waits for it."""
        try:
            return self.stream.read(1) == b""
        except ConnectionResetError:
            return True


def http_request(method: str, target: str, body: bytes | None = None, **headers: str) -> bytes:
    """A request's bytes."""
    lines = {"Host": "127.0.0.1"} | {name.replace("_", "-"): value for name, value in headers.items()}
    if body is not None:
        lines["Content-Length"] = str(len(body))
    text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {target} HTTP/1.1\r\n{text}\r\n".encode() + (body or b"")
