"""Hostile requests over HTTP: they get errors, and have no effect on other clients."""

import subprocess
import sys
import threading

import pytest

from tests.harness.http_daemon import ANN, BOB, HttpDaemon
from tests.harness.http_peer import http_request
from tests.harness.processes import ROOT
from tests.harness.real_daemon import TOKEN
from tests.harness.waiting import DEADLINE_S
from tests.http.conftest import Start

BODY = b"POST /v2/get HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
AMBIGUOUS = [
    BODY + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    BODY + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    BODY + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nabcde",
    BODY + b"Content-Length: 5, 5\r\n\r\nabcde",
    BODY + b"Content-Length: +5\r\n\r\nabcde",
    BODY + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    BODY + b"Transfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
    BODY + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
    BODY.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"GET /v1/a HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n\r\n",
    b"GET /v1/a HTTP/1.1\nHost: localhost\n\n",
    b"GET /v1/a HTTP/1.1\r\nHost: localhost\r\nX: a\n\r\n",
    b"GET /v1/a HTTP/1.1\r\nHost : localhost\r\n\r\n",
    b"GET /v1/a HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
    b"GET /v1/a HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n",
    b"GET /v1/a b HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
]


@pytest.mark.parametrize("sent", AMBIGUOUS)
def test_an_ambiguous_request_is_an_error_and_closes_the_connection(daemon: HttpDaemon, sent: bytes) -> None:
    with daemon.connect() as client:
        client.send(sent + http_request("PUT", "/v1/smuggled", b"x"))
        assert client.response().status in (400, 405, 501)  # 501: an unknown transfer coding
        assert client.is_over()
    assert daemon.ask("GET", "/v1/smuggled").status == 404


def test_the_fast_path_reads_no_further_than_the_path(daemon: HttpDaemon) -> None:
    """The second GET of a kept connection skips the parser, unless it has more than a plain path."""
    daemon.ask("PUT", "/v1/a", b"1")
    head = b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with daemon.connect() as client:
        for _ in range(2):
            assert client.ask("GET", "/v1/a").body == b"1"
        client.send(b"GET /v1/a" + head + b"DELETE /v1/a" + head + b"GET /v1/a" + head)
        assert [client.response().status for _ in range(3)] == [200, 200, 404]
        client.send(b"GET /v1/a?x" + head)
        assert client.response().status == 400
        client.send(b"GET /v1/a HTTP/1.1\r\nHost: evil" + head)
        assert client.response().status == 400


def test_pipelined_requests_are_answered_in_order(daemon: HttpDaemon) -> None:
    with daemon.connect() as client:
        client.send(
            b"".join(http_request("PUT", f"/v1/k{n}", b"%d" % n) + http_request("GET", f"/v1/k{n}") for n in range(300))
        )
        for n in range(300):
            assert client.response().status == 201
            assert client.response().body == b"%d" % n


@pytest.mark.parametrize("head", [b"X: " + b"x" * 70_000, b"\r\n".join(b"X%d: y" % n for n in range(200))])
def test_a_huge_head_is_431(daemon: HttpDaemon, head: bytes) -> None:
    with daemon.connect() as client:
        client.send(b"GET /v1/a HTTP/1.1\r\nHost: localhost\r\n" + head + b"\r\n\r\n")
        assert client.response().status == 431
        assert client.is_over()


def test_a_body_may_come_in_chunks_and_after_continue(daemon: HttpDaemon) -> None:
    with daemon.connect() as client:
        client.send(
            b"PUT /v1/a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n"
        )
        client.send(b"0\r\nTrailer: 1\r\n\r\n")
        assert client.response().status == 201
        assert client.ask("GET", "/v1/a").body == b"abcde"
        client.send(b"PUT /v1/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert client.response().status == 100
        client.send(b"xy")
        assert client.response().status == 201
        assert client.ask("GET", "/v1/a").body == b"xy"


def test_a_slow_body_is_408(start: Start) -> None:
    daemon = start("[limits]\nframe_timeout_ms = 50\n")
    with daemon.connect() as client:
        client.send(b"PUT /v1/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nab")
        assert client.response().status == 408
        assert client.is_over()
    assert daemon.ask("GET", "/v1/a").status == 404


def test_a_peer_that_never_reads_is_closed_and_delays_no_client(start: Start) -> None:
    daemon = start("[limits]\nstalled_peer_timeout_ms = 50\n")
    assert daemon.ask("PUT", "/v1/big", bytes(4_000_000)).status == 201
    with daemon.connect() as client:

        def ask_forever() -> None:
            try:
                while True:
                    client.send(http_request("GET", "/v1/big") * 100)
            except OSError:
                return

        asking = threading.Thread(target=ask_forever)
        asking.start()
        assert daemon.ask("GET", "/status").status == 200
        asking.join(30)
        assert not asking.is_alive(), "the daemon never closed the connection"


# ---------------------------------------------------------------------- tokens and rules

RULES = """
[[access]]
prefix = ""
token = "ann"
rights = ["read", "write", "watch"]
[[access]]
prefix = "open/"
everyone = true
rights = ["read"]
"""


def test_each_request_needs_a_token_and_has_its_rights(start: Start) -> None:
    daemon = start(RULES, is_open=False)
    reply = daemon.ask("GET", "/v1/a")
    assert (reply.status, reply.headers["www-authenticate"]) == (401, 'Bearer realm="kvd"')
    for wrong in ("Bearer wrong", f"Basic {TOKEN}", "Bearer", TOKEN):
        assert daemon.ask("PUT", "/v1/a", b"x", Authorization=wrong).status == 401
    with daemon.connect() as client:
        assert client.ask("PUT", "/v1/a", b"1", Authorization=ANN).status == 201
        assert client.ask("GET", "/v1/a", Authorization=ANN).body == b"1"
        assert client.ask("GET", "/v1/a", Authorization=BOB).status == 403
        assert client.ask("GET", "/v1/open/x", Authorization=BOB).status == 404
        assert client.ask("PUT", "/v1/open/x", b"2", Authorization=BOB).status == 403
        assert client.ask("GET", "/v1/", b'["open/x","a"]', Authorization=BOB).status == 403
        assert client.ask("PUT", "/v2/keys/a", b"2", If_None_Match="*", Authorization=BOB).status == 403
        assert client.ask("GET", "/v1/a", Authorization=ANN).body == b"1"
        assert client.ask("GET", "/v1/a").status == 401
    with daemon.connect_local() as client:
        assert client.ask("GET", "/v1/a", Host="any").body == b"1"


@pytest.mark.parametrize("flags", [("127.0.0.1:0",), ("0.0.0.0:0", "--http-open"), ("[::]:0", "--http-open")])
@pytest.mark.parametrize("check", [(), ("--check-config",)])
def test_a_configuration_without_authentication_is_an_error(
    tmp_path: object, flags: tuple[str, ...], check: tuple[str, ...]
) -> None:
    command = [sys.executable, "-m", "kv", "serve", "--socket", f"{tmp_path}/s", "--http", *flags, *check]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=DEADLINE_S, check=False)  # noqa: S603
    assert (result.returncode, b"HTTP" in result.stderr or b"http.open" in result.stderr) == (78, True)


def test_http_is_loaded_only_on_demand_and_a_missing_extra_is_an_error(tmp_path: object) -> None:
    code = "import kvd.service.serve, sys; print([m for m in sys.modules if m.startswith(('kvd.http', 'httptools'))])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=DEADLINE_S, check=True)  # noqa: S603
    assert result.stdout == b"[]\n"
    code = (
        "import sys; sys.modules['httptools'] = None; from kvd.service.serve import check_config; "
        "sys.exit(check_config({'http.listen': '127.0.0.1:0', 'http.open': True}, '/dev/null'))"
    )
    code = code.replace("'/dev/null'", "None")
    result = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=DEADLINE_S, check=False
    )
    assert (result.returncode, b"kvd[http]" in result.stderr) == (78, True)


def test_a_reply_waits_for_the_disk(start: Start, tmp_path: object) -> None:
    daemon = start("", "--data-dir", f"{tmp_path}/data")
    with daemon.connect() as client:
        for n in range(20):
            client.send(http_request("PUT", "/v1/a", b"%d" % n) + http_request("GET", "/v1/a"))
        for n in range(20):
            assert client.response().status == 201
            assert client.response().body == b"%d" % n
    daemon.kill()
    restarted = start("", "--data-dir", f"{tmp_path}/data")
    assert restarted.ask("GET", "/v1/a").body == b"19"
