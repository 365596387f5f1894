"""The routes of /v1/: as the first implementation's client uses them, and without that implementation's faults."""

import json
import subprocess
import sys

import pytest

from kvd.http.problems import Problem
from tests.harness.http_daemon import HttpDaemon
from tests.harness.processes import ROOT
from tests.harness.waiting import DEADLINE_S

# The exact bytes of the first implementation's client (Go's net/http), except keys and values.
GET = b"GET /v1/%s HTTP/1.1\r\nHost: localhost:4000\r\nUser-Agent: Go-http-client/1.1\r\nAccept-Encoding: gzip\r\n\r\n"
DELETE = GET.replace(b"GET", b"DELETE")
PUT = (
    b"PUT /v1/%s HTTP/1.1\r\nHost: localhost:4000\r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: %d\r\n"
    b"Accept-Encoding: gzip\r\n\r\n%s"
)
BULK = (
    b"%s /v1/ HTTP/1.1\r\nHost: localhost:4000\r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: %d\r\n"
    b"Content-Type: application/json\r\nAccept-Encoding: gzip\r\n\r\n%s"
)
METRICS = GET.replace(b"/v1/%s", b"/metrics")


def bulk(method: bytes, body: bytes) -> bytes:
    return BULK % (method, len(body), body)


# A conversation: each request, and the status, content type and body of its reply.
TEXT, ERROR, JSON = "text/plain", "text/plain; charset=utf-8", "application/json"
TRANSCRIPT: list[tuple[bytes, int, str | None, bytes]] = [
    (PUT % (b"cake", 4, "🎂".encode()), 201, None, b""),
    (GET % b"cake", 200, TEXT, "🎂".encode()),
    (bulk(b"PUT", '[{"Key":"horns","Value":"😈"},{"Key":"smiley","Value":"😁"}]'.encode()), 201, None, b""),
    (
        bulk(b"GET", b'["smiley","cake"]'),
        200,
        JSON,
        '[{"Key":"smiley","Value":"😁"},{"Key":"cake","Value":"🎂"}]'.encode(),
    ),
    (METRICS, 200, JSON, b'{"KeysStored":3,"ValueBytesStored":12,"GetOps":3,"SetOps":3,"DelOps":0}'),
    (DELETE % b"cake", 200, TEXT, "🎂".encode()),
    (GET % b"cake", 404, ERROR, b"key not found\n"),
    (DELETE % b"cake", 404, ERROR, b"key not found\n"),
    (bulk(b"GET", b'["horns","cake"]'), 404, ERROR, b"key not found\n"),
    (bulk(b"DELETE", b'["horns","cake"]'), 404, ERROR, b"key not found\n"),
    (GET % b"horns", 200, TEXT, "😈".encode()),
    (bulk(b"DELETE", b'["horns","smiley"]'), 200, None, b""),
    (PUT % (b"empty", 0, b""), 201, None, b""),
    (GET % b"empty", 200, TEXT, b""),
    (DELETE % b"empty", 200, TEXT, b""),
    (bulk(b"GET", b"[]"), 200, JSON, b"[]"),
    (bulk(b"DELETE", b"[]"), 200, None, b""),
    (bulk(b"PUT", b"[]"), 400, ERROR, b"No records provided\n"),
    (bulk(b"PUT", b""), 400, ERROR, b"Request body is required\n"),
    (bulk(b"GET", b""), 400, ERROR, b"Request body is required\n"),
    (bulk(b"PUT", b"{"), 400, ERROR, b"Invalid JSON format\n"),
    (bulk(b"PUT", b'[{"Key":"a","Value":1}]'), 400, ERROR, b"Invalid JSON format\n"),
    (bulk(b"PUT", b'[{"Key":"a","Value":"1"},{"Key":"","Value":"2"}]'), 400, ERROR, b"empty key not allowed\n"),
    (bulk(b"GET", b'[""]'), 400, ERROR, b"empty key not allowed\n"),
    (bulk(b"PUT", b'[{"KEY":"a","value":"1","more":3},{"key":"b"}]'), 201, None, b""),
    (bulk(b"GET", b'["b","a"]'), 200, JSON, b'[{"Key":"b","Value":""},{"Key":"a","Value":"1"}]'),
    (GET.replace(b"/v1/%s", b"/other"), 404, ERROR, b"404 page not found\n"),
    (GET.replace(b"GET /v1/%s", b"POST /v1/a"), 405, None, b""),
]


def test_the_first_implementations_transcript_is_answered_exactly_on_one_connection(start: object) -> None:
    daemon: HttpDaemon = start()  # type: ignore[operator]
    with daemon.connect() as client:
        for sent, status, content_type, body in TRANSCRIPT:
            client.send(sent)
            answer = client.response()
            assert (answer.status, answer.headers.get("content-type"), answer.body) == (status, content_type, body), (
                sent
            )


def test_status_has_the_first_implementations_fields(daemon: HttpDaemon) -> None:
    answer = daemon.ask("GET", "/status")
    status = answer.json()
    assert answer.headers["content-type"] == "application/json"
    assert list(status) == ["status", "message", "ts", "version"]
    assert (status["status"], status["message"]) == ("ok", "Server initialized")


# ---------------------------------------------------------------------- numbered as in the list of faults


@pytest.mark.parametrize("target", ["/v1/a?force", "/v1/q?x=1", "/v1/a?"])
def test_fault_4_a_target_with_a_query_changes_no_key(daemon: HttpDaemon, target: str) -> None:
    daemon.ask("PUT", "/v1/a", b"kept")
    assert daemon.ask("DELETE", target).status == 400
    assert daemon.ask("PUT", target, b"new").status == 400
    assert daemon.ask("GET", "/v1/a").body == b"kept"
    assert daemon.ask("GET", "/v1/q").status == 404


def test_fault_5_a_trailing_slash_is_part_of_the_key_and_is_not_redirected(daemon: HttpDaemon) -> None:
    daemon.ask("PUT", "/v1/a", b"old")
    assert daemon.ask("DELETE", "/v1/a/").status == 404
    assert daemon.ask("PUT", "/v1/a/", b"new").status == 201
    assert (daemon.ask("GET", "/v1/a").body, daemon.ask("GET", "/v1/a/").body) == (b"old", b"new")
    assert daemon.ask("DELETE", "/v1/a/").body == b"new"


@pytest.mark.parametrize(
    ("target", "key"),
    [
        ("a/b", "a/b"),
        ("a%2Fb", "a/b"),
        ("a%2fb", "a/b"),
        ("..", ".."),
        ("a/../b", "a/../b"),
        ("//", "//"),
        ("p%25zz", "p%zz"),
        ("q%3Fx=1", "q?x=1"),
        ("q%23frag", "q#frag"),
        ("a+b", "a+b"),
        ("%F0%9F%8E%82", "🎂"),
        ("%00%0d%0a", "\0\r\n"),
        ("status", "status"),
        (":%20;", ": ;"),
    ],
)
def test_fault_6_the_single_route_reaches_any_key(daemon: HttpDaemon, target: str, key: str) -> None:
    assert daemon.ask("PUT", f"/v1/{target}", b"here").status == 201
    assert daemon.ask("GET", f"/v1/{target}").body == b"here"
    assert daemon.post("/v2/get", {"keys": [key]}).json()["items"][0]["value"] == "here"
    assert daemon.ask("DELETE", f"/v1/{target}").body == b"here"


@pytest.mark.parametrize("target", ["p%zz", "p%", "p%2", "%FF"])
def test_a_target_that_is_no_key_gets_a_clear_error(daemon: HttpDaemon, target: str) -> None:
    answer = daemon.ask("PUT", f"/v1/{target}", b"x")
    assert (answer.status, b"key" in answer.body) == (400, True)


def test_fault_7_binary_values_are_returned_unchanged_or_not_at_all(daemon: HttpDaemon) -> None:
    binary = bytes(range(256))
    daemon.ask("PUT", "/v1/b", binary)
    assert daemon.ask("GET", "/v1/b").body == binary
    answer = daemon.ask("GET", "/v1/", b'["b"]')
    assert (answer.status, b"not text" in answer.body) == (422, True)
    assert daemon.ask("PUT", "/v1/", b'[{"Key":"c","Value":"\xff"}]').status == 400
    assert daemon.ask("PUT", "/v1/", b'[{"Key":"c","Value":"\\ud800"}]').status == 400
    assert daemon.ask("GET", "/v1/c").status == 404


def test_fault_8_a_key_named_twice_is_deleted_and_counted_once(daemon: HttpDaemon) -> None:
    before = daemon.ask("GET", "/metrics").json()["KeysStored"]
    daemon.ask("PUT", "/v1/a", b"1")
    assert daemon.ask("DELETE", "/v1/", b'["a","a"]').status == 200
    assert daemon.ask("GET", "/metrics").json()["KeysStored"] == before == 0


def test_fault_11_head_is_answered_like_get_without_a_body(daemon: HttpDaemon) -> None:
    daemon.ask("PUT", "/v1/a", b"12345")
    for target in ("/v1/a", "/status", "/metrics", "/v1/missing"):
        with daemon.connect() as client:
            get, head = client.ask("GET", target), client.ask("HEAD", target)
            assert head.status == get.status
            assert head.body == b""
            if target == "/v1/a":
                assert head.headers["content-length"] == "5"
            assert client.ask("GET", "/v1/a").body == b"12345"


def test_fault_12_an_empty_key_is_a_client_error_and_nothing_is_stored(daemon: HttpDaemon) -> None:
    records = json.dumps([{"Key": "a", "Value": "1"}, {"Key": ""}]).encode()
    for method, body in (("PUT", records), ("GET", b'[""]'), ("DELETE", b'["a",""]')):
        assert daemon.ask(method, "/v1/", body).status == 400
    assert daemon.ask("GET", "/v1/a").status == 404


def test_fault_13_a_body_over_the_limit_is_413_and_five_megabytes_are_accepted(daemon: HttpDaemon) -> None:
    value = bytes(5_000_000)
    assert daemon.ask("PUT", "/v1/a", value).status == 201
    assert daemon.ask("GET", "/v1/a").body == value
    too_large = b'["' + b"x" * (1024 * 1024) + b'"]'
    assert daemon.ask("GET", "/v1/", too_large).status == 413
    with daemon.connect() as client:
        client.send(b"PUT /v1/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 8388609\r\n\r\n")
        assert client.response().status == 413
        assert client.is_over()
    assert daemon.ask("GET", "/v1/a").body == value


def test_fault_14_v2_says_which_keys_are_missing(daemon: HttpDaemon) -> None:
    daemon.ask("PUT", "/v1/a", b"1")
    items = daemon.post("/v2/get", {"keys": ["a", "b"]}).json()["items"]
    assert [(item["key"], item["value"]) for item in items] == [("a", "1"), ("b", None)]


def test_fault_17_a_delete_does_not_count_as_a_get(daemon: HttpDaemon) -> None:
    daemon.ask("PUT", "/v1/a", b"1")
    before = daemon.ask("GET", "/metrics").json()
    daemon.ask("DELETE", "/v1/a")
    after = daemon.ask("GET", "/metrics").json()
    assert (after["GetOps"], after["DelOps"]) == (before["GetOps"], before["DelOps"] + 1)


def test_fault_18_a_missing_key_counts_alike_alone_and_in_bulk(daemon: HttpDaemon) -> None:
    before = daemon.ask("GET", "/metrics").json()["GetOps"]
    daemon.ask("GET", "/v1/missing")
    assert daemon.ask("GET", "/metrics").json()["GetOps"] == before + 1
    daemon.ask("GET", "/v1/", b'["missing"]')
    assert daemon.ask("GET", "/metrics").json()["GetOps"] == before + 2
    with daemon.connect() as client:  # the second takes the fast path
        for _ in range(2):
            assert client.ask("GET", "/v1/missing").status == 404
    assert daemon.ask("GET", "/metrics").json()["GetOps"] == before + 4


def test_fault_22_the_content_type_is_that_of_the_body(daemon: HttpDaemon) -> None:
    assert daemon.ask("GET", "/v1/", b"{").headers["content-type"] == "text/plain; charset=utf-8"
    assert daemon.ask("GET", "/v2/keys/a").headers["content-type"] == "application/problem+json"


def test_fault_9_a_port_in_use_is_an_error_at_start(daemon: HttpDaemon, tmp_path: object) -> None:
    result = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "kv", "serve", "--socket", f"{tmp_path}/s", "--http", f"127.0.0.1:{daemon.port}",
         "--http-open"],
        cwd=ROOT, capture_output=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert result.returncode == 74
    assert b"started" not in result.stdout
    assert b"cannot listen on" in result.stderr


# ---------------------------------------------------------------------- metrics for Prometheus


def test_metrics_are_in_prometheus_format_on_request(daemon: HttpDaemon) -> None:
    """Without the extra that this needs, the error names it."""
    by_route = daemon.ask("GET", "/metrics/prometheus")
    by_accept = daemon.ask("GET", "/metrics", Accept="application/openmetrics-text,text/plain;version=0.0.4;q=0.5,*/*")
    assert by_route.status == by_accept.status
    if by_route.status == 501:
        assert b"kvd[prometheus]" in by_route.body
    else:
        assert by_route.status == 200
        assert b"# TYPE" in by_accept.body
    for accept in ("*/*", "application/json", "text/html"):
        assert "KeysStored" in daemon.ask("GET", "/metrics", Accept=accept).json()


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_json_that_is_nested_too_deeply_is_not_json(daemon: HttpDaemon, method: str, opening: bytes) -> None:
    for body in (opening * 50_000, b"[" + opening * 50_000, b'[{"Key":' + opening * 50_000):
        answer = daemon.ask(method, "/v1/", body)
        assert (answer.status, answer.body) == (400, b"Invalid JSON format\n")


def test_problems_have_a_status_that_exists() -> None:
    with pytest.raises(Problem) as raised:
        raise Problem(413, "too_large", "why", limit=3)
    assert json.loads(raised.value.as_json())["limit"] == 3


def test_replies_of_several_connections_are_not_mixed_up(daemon: HttpDaemon) -> None:
    clients = [daemon.connect() for _ in range(8)]
    for number, client in enumerate(clients):
        client.ask("PUT", f"/v1/k{number}", b"v%d" % number)
    for _ in range(3):
        for number, client in enumerate(clients):
            assert client.ask("GET", f"/v1/k{number}").body == b"v%d" % number
            assert client.ask("GET", f"/v1/k{number + 100}").status == 404
    for client in clients:
        client.close()
