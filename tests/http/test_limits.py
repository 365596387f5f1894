"""What an HTTP peer may make the daemon hold, and which requests a browser may send."""

import pytest

from kvd.http.requests import decoded
from tests.harness.http_daemon import HttpDaemon
from tests.harness.http_peer import http_request
from tests.harness.raw_peer import KIB, MIB
from tests.http.conftest import Start


@pytest.mark.parametrize("size", [40 * KIB, 62 * KIB, 200 * KIB])
@pytest.mark.parametrize("piece", [1 * MIB, 1000])
def test_a_long_target_is_refused_however_it_is_cut(daemon: HttpDaemon, size: int, piece: int) -> None:
    data = http_request("GET", "/v1/" + "a" * size)
    with daemon.connect() as client:
        try:
            for at in range(0, len(data), piece):
                client.send(data[at : at + piece])
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has answered already
        assert client.response().status == 431


def test_percent_decoding_is_that_of_the_standard_library() -> None:
    text = b"".join(b"%%%02x" % byte for byte in "häß/ €".encode()) + b"plain%41%61"
    assert decoded(text, "the key") == "häß/ €plainAa"


@pytest.mark.parametrize("route", ["/v1/", "/v2/get"])
def test_a_json_answer_is_bounded_after_its_encoding(start: Start, route: str) -> None:
    daemon = start(f"limits.max_reply_bytes = {2 * MIB}\nlimits.max_value_bytes = {MIB}\n", is_open=True)
    for name in ("a", "b"):
        assert daemon.ask("PUT", f"/v1/{name}", b"\x01" * (MIB // 2)).status == 201
    answer = daemon.ask("GET", route, b'["a", "b"]') if route == "/v1/" else daemon.post(route, {"keys": ["a", "b"]})
    assert answer.status == 413
    assert len(answer.body) <= 2 * MIB


def test_chunks_of_two_bytes_cost_their_bytes(start: Start) -> None:
    daemon = start("", is_open=True)
    before = daemon.status()["memory_rss_bytes"]
    head = b"PUT /v1/k HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with daemon.connect() as client:
        client.send(head + b"2\r\nab\r\n" * (2 * MIB))
        assert daemon.ask("GET", "/status").status == 200
        assert daemon.status()["memory_rss_bytes"] - before < 48 * MIB
        client.send(b"0\r\n\r\n")
        assert client.response().status == 201
    assert daemon.ask("GET", "/v1/k").body == b"ab" * (2 * MIB)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Host": "[::1]evil"}, 421),
        ({"Host": "localhost:80.evil"}, 421),
        ({"Host": "localhost:"}, 200),
        ({"Host": "localhost", "Origin": "x://localhost"}, 403),
        ({"Host": "localhost", "Origin": "http://localhost"}, 200),
    ],
)
def test_what_a_page_of_another_origin_sends_is_refused(
    daemon: HttpDaemon, headers: dict[str, str], status: int
) -> None:
    answer = daemon.ask("GET", "/status", **headers)
    assert answer.status == status
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"


def test_a_connection_has_one_guess_at_a_token(start: Start) -> None:
    daemon = start("", is_open=False)
    with daemon.connect() as client:
        client.send(http_request("GET", "/v1/a", Authorization="Bearer wrong") * 2)
        assert client.response().status == 401
        assert client.is_over()
