"""HTTP that no client speaks: each request is answered below 500 or refused, and the daemon serves on."""

from collections.abc import Iterator

import pytest

from tests.harness.daemon import new_folders, see_all_end
from tests.harness.http_daemon import HttpDaemon
from tests.harness.mutations import inputs
from tests.harness.scale import TIMES

ROUNDS = 1_500 * TIMES
JSON = b"Content-Type: application/json\r\n"
SAMPLES = [
    b"GET /v1/a HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"PUT /v1/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 7\r\n\r\n" + b'{"a":1}',
    b"PUT /v2/keys/a%20b?ttl=5 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nIf-None-Match: *\r\n\r\nx",
    b"GET /v2/keys?prefix=a&limit=10 HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n",
    b"GET /v2/keys/a?at=1 HTTP/1.1\r\nHost: localhost\r\nRange: bytes=0-1\r\n\r\n",
    b"DELETE /v2/keys/a HTTP/1.1\r\nHost: localhost\r\nIf-Match: \"1.2\"\r\n\r\n",
    b"POST /v2/get HTTP/1.1\r\nHost: localhost\r\n" + JSON + b'Content-Length: 16\r\n\r\n{"keys":["a","b"]}'[:300],
    b"POST /v2/commit HTTP/1.1\r\nHost: localhost\r\n" + JSON
    + b'Transfer-Encoding: chunked\r\n\r\n1c\r\n{"writes":{"a":"1","b":null}}\r\n0\r\n\r\n',
    b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    b"HEAD /v1/a HTTP/1.0\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\n\r\n",
]  # fmt: skip


@pytest.fixture(scope="module")
def daemon() -> Iterator[HttpDaemon]:
    with new_folders() as new_folder:
        one = HttpDaemon(new_folder(), "", is_open=True)
        yield one
        see_all_end([one.daemon])


def statuses(stream: bytes) -> Iterator[int]:
    """Yield the status of each response in what the daemon sent."""
    for piece in stream.split(b"HTTP/1.1 ")[1:]:
        if piece[:3].isdigit():
            yield int(piece[:3])


def answer(daemon: HttpDaemon, data: bytes) -> bytes:
    """Send ``data``, then the end; return all that comes back until the daemon closes the connection."""
    with daemon.connect_local() as peer:
        try:
            peer.send(data)
            peer.socket.shutdown(1)  # SHUT_WR
            return peer.stream.read()
        except (BrokenPipeError, ConnectionResetError):
            return b""


def test_no_request_is_a_fault_and_the_daemon_serves_on(daemon: HttpDaemon) -> None:
    seen: set[int] = set()
    for seed, data in inputs(SAMPLES, ROUNDS):
        if b"watch" in data:
            continue
        found = set(statuses(answer(daemon, data)))
        assert not {status for status in found if status >= 500} - {501, 505}, (seed, data, found)
        seen |= found
    assert {200, 400, 404} <= seen
    assert daemon.ask("PUT", "/v1/after", b"1").status in (200, 201, 204)
    assert "Traceback" not in daemon.daemon.log()
