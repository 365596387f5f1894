"""The routes of /v2/."""

import base64
import json
import pathlib

import pytest

from tests.harness.daemon import Daemon
from tests.harness.http_daemon import HttpDaemon
from tests.harness.http_peer import HttpPeer
from tests.http.conftest import Start

BINARY = bytes(range(256))


def test_a_value_is_returned_byte_for_byte_with_its_version_as_etag(daemon: HttpDaemon) -> None:
    put = daemon.ask("PUT", "/v2/keys/a%2Fb", BINARY)
    assert put.status == 201
    got = daemon.ask("GET", "/v2/keys/a/b")
    assert (got.status, got.body, got.headers["etag"]) == (200, BINARY, put.headers["etag"])
    head = daemon.ask("HEAD", "/v2/keys/a/b")
    assert (head.status, head.headers["content-length"], head.body) == (200, "256", b"")
    assert daemon.ask("PUT", "/v2/keys/a/b", b"").status == 204
    assert daemon.ask("GET", "/v2/keys/a/b").body == b""
    assert daemon.ask("DELETE", "/v2/keys/a/b").status == 204
    assert daemon.ask("DELETE", "/v2/keys/a/b").status == 404


def test_nothing_is_written_if_a_condition_fails(daemon: HttpDaemon) -> None:
    assert daemon.ask("PUT", "/v2/keys/c", b"1", If_None_Match="*").status == 201
    assert daemon.ask("PUT", "/v2/keys/c", b"2", If_None_Match="*").status == 412
    first = daemon.ask("GET", "/v2/keys/c").headers["etag"]
    assert daemon.ask("PUT", "/v2/keys/c", b"2", If_Match=first).status == 204
    assert daemon.ask("PUT", "/v2/keys/c", b"3", If_Match=first).status == 412
    assert daemon.ask("DELETE", "/v2/keys/c", If_Match=first).status == 412
    second = daemon.ask("GET", "/v2/keys/c")
    assert second.body == b"2"
    assert daemon.ask("GET", "/v2/keys/c", If_None_Match=second.headers["etag"]).status == 304
    assert daemon.ask("GET", "/v2/keys/c", If_None_Match=first).status == 200
    assert daemon.ask("PUT", "/v2/keys/none", b"1", If_Match="*").status == 412
    assert daemon.ask("DELETE", "/v2/keys/c", If_Match=second.headers["etag"]).status == 204


def test_bulk_reads_and_writes_are_binary_safe_and_atomic(daemon: HttpDaemon) -> None:
    encoded = {"base64": base64.b64encode(BINARY).decode()}
    written = daemon.post("/v2/set", {"entries": {"t": "text 🎂", "b": encoded, "e": ""}}).json()
    read = daemon.post("/v2/get", {"keys": ["b", "none", "t", "e"]}).json()
    assert [item["value"] for item in read["items"]] == [encoded, None, "text 🎂", ""]
    assert [item["version"] for item in read["items"]] == [
        written["version"],
        0,
        written["version"],
        written["version"],
    ]
    daemon.post("/v2/set", {"entries": {"t": "new"}})
    assert daemon.post("/v2/get", {"keys": ["t"], "at": written["version"]}).json()["items"][0]["value"] == "text 🎂"
    assert daemon.ask("GET", f"/v2/keys/t?at={written['version']}").body == "text 🎂".encode()
    assert daemon.post("/v2/delete", {"keys": ["t", "none"]}).status == 404
    assert daemon.post("/v2/delete", {"keys": ["t", "none"], "missing_ok": True}).json()["deleted"] == 1


def test_a_pruned_version_is_410_and_a_future_version_is_400(start: Start) -> None:
    daemon = start("[history]\nmax_versions = 0\n")
    first = daemon.post("/v2/set", {"entries": {"a": "1"}}).json()["version"]
    for number in range(5):
        daemon.ask("PUT", "/v2/keys/a", str(number).encode())
    assert daemon.ask("GET", f"/v2/keys/a?at={first}").status == 410
    assert daemon.ask("GET", "/v2/keys/a?at=999999").status == 400


def test_the_pages_of_a_prefix_are_in_order_and_end(daemon: HttpDaemon) -> None:
    names = [f"p/{number:03}" for number in range(25)]
    daemon.post("/v2/set", {"entries": {**dict.fromkeys(names, "x"), "q": "x", "o": "x"}})
    listed, target, pages = [], "/v2/keys?prefix=p/&limit=10", 0
    while target:
        page = daemon.ask("GET", target).json()
        listed += [item["key"] for item in page["items"]]
        target = page["next"] and f"/v2/keys?prefix=p/&limit=10&start={page['next']}"
        pages += 1
    assert (listed, pages) == (names, 3)
    assert [item["key"] for item in daemon.ask("GET", "/v2/keys?prefix=p/&after=p/022").json()["items"]] == names[23:]
    assert daemon.ask("GET", "/v2/keys?prefix=p/&limit=1&values=true").json()["items"][0]["value"] == "x"


def test_a_transaction_is_all_or_nothing(daemon: HttpDaemon) -> None:
    version = daemon.post("/v2/set", {"entries": {"x": "1", "y": "1"}}).json()["version"]
    success = daemon.post(
        "/v2/transaction", {"compare": {"x": version, "new": 0}, "set": {"new": "1"}, "delete": ["y"]}
    )
    assert success.status == 200
    conflict = daemon.post("/v2/transaction", {"compare": {"new": 0}, "set": {"x": "2"}, "delete": ["x2"]})
    assert (conflict.status, conflict.headers["content-type"]) == (409, "application/problem+json")
    assert conflict.json()["code"] == "conflict"
    assert "new" in json.dumps(conflict.json()["conflicts"])
    assert daemon.ask("GET", "/v2/keys/x").body == b"1"
    assert daemon.post("/v2/transaction", {"set": {"x": "1"}, "delete": ["x"]}).status == 400
    assert daemon.post("/v2/transaction", {"store": "another", "set": {"x": "9"}}).status == 409


def test_a_valid_ttl_is_accepted_and_a_bad_one_is_an_error(daemon: HttpDaemon) -> None:
    assert daemon.ask("PUT", "/v2/keys/t?ttl=600000", b"1").status == 201
    assert b"t: 9m" in daemon.kv("ttl", "t").stdout
    for bad in ("0", "-1", "x", "1.5", "99999999999999999999"):
        assert daemon.ask("PUT", f"/v2/keys/t?ttl={bad}", b"2").status == 400
    assert daemon.ask("GET", "/v2/keys/t").body == b"1"


@pytest.mark.parametrize(
    ("method", "target", "body", "status"),
    [
        ("POST", "/v2/get", b"{", 400), ("POST", "/v2/get", b"[]", 400), ("POST", "/v2/get", b'{"keys": [1]}', 400),
        ("POST", "/v2/get", b'{"keys": [""]}', 400), ("POST", "/v2/set", b'{"entries": {}}', 400),
        ("POST", "/v2/set", b'{"entries": {"a": {"base64": "!"}}}', 400), ("POST", "/v2/set", b'{"x": 1}', 400),
        ("POST", "/v2/set", b'{"entries": {"": "x"}}', 400), ("POST", "/v2/delete", b'{"keys": []}', 400),
        ("POST", "/v2/get", b"[" * 100_000, 400), ("GET", "/v2/get", None, 405), ("POST", "/v2/keys", b"{}", 405),
        ("PATCH", "/v2/keys/a", b"x", 405), ("GET", "/v2/nothing", None, 404), ("GET", "/v2/keys?limit=0", None, 400),
        ("GET", "/v2/keys?nonsense=1", None, 400), ("GET", "/v2/keys/", None, 400), ("GET", "/v2/keys/%ff", None, 400),
        ("POST", "/v2/set", b'{"entries": {"a": "' + b"x" * 1_100_000 + b'"}}', 413),
    ],
)  # fmt: skip
def test_bad_input_gets_a_problem_document_with_a_reason(
    daemon: HttpDaemon, method: str, target: str, body: bytes | None, status: int
) -> None:
    version = daemon.status()["version"]
    answer = daemon.ask(method, target, body, Content_Type="application/json")
    assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.json()["status"] == status
    assert answer.json()["detail"]
    assert daemon.status()["version"] == version


def test_a_body_of_another_type_is_415(daemon: HttpDaemon) -> None:
    assert daemon.ask("POST", "/v2/set", b'{"entries": {"a": "1"}}', Content_Type="text/plain").status == 415


def test_the_document_names_every_route_of_v2(daemon: HttpDaemon) -> None:
    document = daemon.ask("GET", "/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    from kvd.http.listener import ROUTES

    documented = set(document["paths"])
    assert {path.decode() for path in ROUTES if path.startswith(b"/v2/")} <= documented
    assert "/v2/keys/{key}" in documented


def test_a_write_over_the_memory_limit_is_503(start: Start) -> None:
    daemon = start("[memory]\nmax_keys = 2\n")
    assert daemon.post("/v2/set", {"entries": {"a": "1", "b": "1"}}).status == 200
    error = daemon.ask("PUT", "/v2/keys/c", b"1")
    assert (error.status, error.json()["code"]) == (503, "out_of_memory")
    assert "retry-after" in error.headers
    assert daemon.ask("DELETE", "/v2/keys/a").status == 204


def test_acknowledged_writes_survive_kill_9(tmp_path: pathlib.Path) -> None:
    with Daemon(tmp_path, "", "--data-dir", f"{tmp_path}/d", "--http", f"{tmp_path}/h") as daemon:
        for number in range(3):
            with HttpPeer.unix(f"{tmp_path}/h") as client:
                for before in range(number):
                    assert client.ask("GET", f"/v1/k{before}").body == b"v" * 1_000
                assert client.ask("PUT", f"/v1/k{number}", b"v" * 1_000).status == 201
                daemon.kill()
            daemon.serve()
