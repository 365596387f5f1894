"""The routes under /v2/."""

import json

from tests.http.conftest import Client, Daemon


def events(client: Client, count: int) -> list[tuple[str, dict[str, object]]]:
    """The next events of a watch."""
    found = []
    for chunk in client.chunks():
        for text in chunk.decode().split("\n\n")[:-1]:
            lines = dict(line.split(": ", 1) for line in text.split("\n"))
            found.append((lines["event"], json.loads(lines["data"])))
        if len(found) >= count:
            return found
    return found


def test_a_key_s_tag_is_its_version_and_conditions_hold(daemon: Daemon) -> None:
    assert daemon.ask("PUT", "/v2/keys/a/b", b"\xff", If_Match="*").status == 412
    made = daemon.ask("PUT", "/v2/keys/a/b", b"\xff", If_None_Match="*")
    tag = made.headers["etag"]
    assert made.status == 201
    assert daemon.ask("PUT", "/v2/keys/a/b", b"2", If_None_Match="*").status == 412
    got = daemon.ask("GET", "/v2/keys/a%2Fb")
    assert (got.body, got.headers["etag"]) == (b"\xff", tag)
    assert daemon.ask("GET", "/v2/keys/a/b", If_None_Match=tag).status == 304
    assert daemon.ask("PUT", "/v2/keys/a/b", b"2", If_Match=tag).status == 204
    assert daemon.ask("PUT", "/v2/keys/a/b", b"3", If_Match=tag).status == 412
    assert daemon.ask("DELETE", "/v2/keys/a/b", If_Match=tag).status == 412
    version = tag.strip('"').partition(".")[0]
    assert daemon.ask("GET", f"/v2/keys/a/b?at={version}").body == b"\xff"
    assert daemon.ask("DELETE", "/v2/keys/a/b").status == 204
    assert daemon.ask("DELETE", "/v2/keys/a/b").status == 404


def test_bulk_is_safe_for_bytes_and_transactions_compare(daemon: Daemon) -> None:
    entries = {"t": "text", "b": {"base64": "/w=="}}
    version = daemon.post("/v2/set", {"entries": entries}).json()["version"]
    read = daemon.post("/v2/get", {"keys": ["b", "t", "x"]}).json()
    assert [item["value"] for item in read["items"]] == [{"base64": "/w=="}, "text", None]
    change = {"compare": {"t": version, "x": 0}, "set": {"x": "1"}, "delete": ["b"], "store": read["store"]}
    assert daemon.post("/v2/transaction", change).status == 200
    again = daemon.post("/v2/transaction", change)
    assert (again.status, again.json()["code"]) == (409, "conflict")
    assert daemon.post("/v2/transaction", change | {"store": "other"}).status == 409
    assert daemon.post("/v2/delete", {"keys": ["t", "gone"]}).status == 404
    deleted = daemon.post("/v2/delete", {"keys": ["t", "gone"], "missing_ok": True}).json()
    assert deleted["deleted"] == 1


def test_keys_are_listed_in_pages(daemon: Daemon) -> None:
    daemon.post("/v2/set", {"entries": {f"p/{n}": str(n) for n in range(5)} | {"q": ""}})
    found: list[str] = []
    target = "/v2/keys?prefix=p/&limit=2&values=true"
    page = daemon.ask("GET", target).json()
    while True:
        found += [item["value"] for item in page["items"]]
        if page["next"] is None:
            break
        page = daemon.ask("GET", f"{target}&at={page['version']}&start={page['next']}").json()
    assert found == ["0", "1", "2", "3", "4"]
    after = daemon.ask("GET", "/v2/keys?prefix=p/&after=p/3").json()
    assert [item["key"] for item in after["items"]] == ["p/4"]


def test_a_ttl_ends_a_key(daemon: Daemon) -> None:
    assert daemon.ask("PUT", "/v2/keys/t?ttl=1", b"x").status == 201
    while daemon.ask("GET", "/v2/keys/t").status == 200:
        pass
    assert daemon.ask("PUT", "/v2/keys/t?ttl=0", b"x").status == 400


def test_a_watch_tells_changes_in_order_and_resynchronises(daemon: Daemon) -> None:
    version = daemon.post("/v2/set", {"entries": {"w/a": "1", "v": "2"}}).json()["version"]
    with daemon.connect() as client:
        client.send(f"GET /v2/watch?prefix=w/&from={version - 1} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        status, headers = client.head()
        assert (status, headers["content-type"]) == (200, "text/event-stream")
        assert events(client, 1)[0][1]["changes"] == {"w/a": "1"}
        daemon.ask("DELETE", "/v1/w/a")
        told = events(client, 1)
        assert told[0][0] == "change"
        assert told[0][1]["changes"] == {"w/a": None}
    with daemon.connect() as client:  # a version that this store never had: all has to be told
        client.send(b"GET /v2/watch?from=99999999 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        client.head()
        assert [name for name, _ in events(client, 3)] == ["reset", "item", "live"]


def test_errors_are_problem_details(daemon: Daemon) -> None:
    for answer in (
        daemon.ask("GET", "/v2/keys/missing"),
        daemon.ask("GET", "/v2/nothing"),
        daemon.ask("POST", "/v2/get", b"{}"),
        daemon.post("/v2/get", {"keys": [1]}),
        daemon.ask("GET", "/v2/keys?limit=x"),
        daemon.ask("PATCH", "/v2/keys/a"),
    ):
        said = answer.json()
        assert answer.headers["content-type"] == "application/problem+json"
        assert said["status"] == answer.status >= 400
        assert {"type", "title", "detail", "code"} <= said.keys()
