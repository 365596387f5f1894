"""`/v2/watch`: its events, the right to it, and its end."""

import base64
import json

from tests.harness.http_daemon import ANN, BOB, HttpDaemon
from tests.harness.http_peer import HttpPeer, http_request
from tests.harness.real_daemon import TOKEN
from tests.http.conftest import Start

BINARY = bytes(range(256))
RULES = """
[[access]]
prefix = "ann/"
token = "ann"
rights = ["read", "write", "watch"]

[[access]]
prefix = "bob/"
token = "bob"
rights = ["read", "write", "watch"]
"""
ELSEWHERE = """
[[access]]
prefix = "elsewhere/"
everyone = true
rights = ["read"]
"""


class Reader:
    """The events of a watch."""

    def __init__(self, client: HttpPeer) -> None:
        self.client = client
        self.text = b""
        self.chunks = client.chunks()

    def until(self, name: str) -> list[dict[str, object]]:
        """Return the data of all events before the next one with this name."""
        data = []
        while (event := self.next())[0] != name:
            data.append(event[1])
        return data

    def is_ended(self) -> bool:
        """Whether the next chunk is the last, and the connection ends after it."""
        return not self.text and next(self.chunks, None) is None and self.client.stream.read() == b"\r\n"

    def next(self) -> tuple[str, dict[str, object], str | None]:
        """Return the next event's name, data and id."""
        while b"\n\n" not in self.text:
            self.text += next(self.chunks)
        event, _, self.text = self.text.partition(b"\n\n")
        fields = dict(line.split(": ", 1) for line in event.decode().splitlines())
        return fields["event"], json.loads(fields["data"]), fields.get("id")


def test_a_watch_sends_every_change_below_its_prefix_once_in_order_and_resumes(daemon: HttpDaemon) -> None:
    begin = daemon.status()["version"]
    with daemon.connect() as client:
        client.send(http_request("GET", f"/v2/watch?prefix=w/&from={begin}.{daemon.status()['store_id']}"))
        status, headers = client.head()
        assert (status, headers["content-type"]) == (200, "text/event-stream")
        reader = Reader(client)
        assert reader.next()[0] == "live"
        daemon.post("/v2/set", {"entries": {"w/a": "1", "other": "1"}})
        daemon.ask("PUT", "/v2/keys/elsewhere", b"1")
        daemon.ask("PUT", "/v2/keys/w/b", BINARY)
        daemon.ask("DELETE", "/v2/keys/w/a")
        events = [reader.next() for _ in range(3)]
    assert [event for event, _, _ in events] == ["change"] * 3
    assert [data["changes"] for _, data, _ in events] == [
        {"w/a": "1"}, {"w/b": {"base64": base64.b64encode(BINARY).decode()}}, {"w/a": None},
    ]  # fmt: skip
    with daemon.connect() as client:
        first = events[0][2] or ""
        client.send(b"GET /v2/watch?prefix=w/ HTTP/1.1\r\nHost: x.localhost\r\n\r\n".replace(b"x.", b"")[:-2]
                    + b"Last-Event-ID: " + first.encode() + b"\r\n\r\n")  # fmt: skip
        client.head()
        reader = Reader(client)
        again = [event for event in (reader.next() for _ in range(3)) if event[0] == "change"]
        assert [data["changes"] for _, data, _ in again][:2] == [data["changes"] for _, data, _ in events[1:]]


def first_events(daemon: HttpDaemon, count: int, target: str, **headers: str) -> list[tuple[str, str | None]]:
    """Return the names and ids of a watch's first events."""
    with daemon.connect_local() as client:
        client.send(http_request("GET", target, **headers))
        assert client.head()[0] == 200
        reader = Reader(client)
        return [(name, id_) for name, _, id_ in (reader.next() for _ in range(count))]


def test_a_watch_that_resumes_in_another_store_begins_with_a_reset(start: Start) -> None:
    daemon = start()
    daemon.post("/v2/set", {"entries": {"s/a": "1"}})
    [(_, last)] = first_events(daemon, 1, "/v2/watch")
    daemon.daemon.terminate()
    daemon.daemon.serve()
    for number in range(3):
        daemon.daemon.ask(["set", {"s/a": b"%d" % number}])
    live = f"3.{daemon.status()['store_id']}"
    reset = [("reset", None), ("item", None), ("live", live)]
    header = {"Last-Event-ID": str(last)}
    assert first_events(daemon, 3, "/v2/watch", **header) == reset
    assert first_events(daemon, 3, f"/v2/watch?from={last}") == reset
    assert first_events(daemon, 3, "/v2/watch?from=1") == reset, "a bare number may be any store's"
    assert first_events(daemon, 3, "/v2/watch", **{"Last-Event-ID": "1"}) == reset, "as an earlier daemon gave it"
    header = {"Last-Event-ID": live.replace("3.", "2.")}
    assert first_events(daemon, 2, "/v2/watch", **header) == [("change", live), ("live", live)]


def test_a_position_that_is_none_is_a_bad_request(daemon: HttpDaemon) -> None:
    for wrong in ("-1", "x", "1.", "1.xyz", str(2**63)):
        assert daemon.ask("GET", f"/v2/watch?from={wrong}").status == 400
        assert daemon.ask("GET", f"/v2/keys?at={wrong}").status == 400


def test_a_read_at_a_version_of_another_store_is_gone(daemon: HttpDaemon) -> None:
    daemon.ask("PUT", "/v2/keys/at", b"1")
    version, ours, other = daemon.status()["version"], daemon.status()["store_id"], "0123456789abcdef"
    for store, status in ((ours, 200), (other, 410)):
        at = f"{version}.{store}"
        assert daemon.ask("GET", f"/v2/keys/at?at={at}").status == status
        assert daemon.ask("GET", f"/v2/keys?at={at}").status == status
        body = {"keys": ["at"], "at": version, "store": store}
        assert daemon.post("/v2/get", body).status == status
    assert daemon.ask("GET", f"/v2/keys/at?at={version}").status == 200, "a bare number is of the present store"


def test_a_watch_from_a_pruned_version_is_resynchronised(start: Start) -> None:
    daemon = start("[history]\nmax_versions = 0\n")
    for number in range(20):
        daemon.ask("PUT", f"/v2/keys/r/{number % 3}", str(number).encode())
    with daemon.connect() as client:
        client.send(b"GET /v2/watch?prefix=r/&from=1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        client.head()
        reader = Reader(client)
        events = [reader.next() for _ in range(5)]
    assert [event for event, _, _ in events] == ["reset", "item", "item", "item", "live"]
    assert {data["key"]: data["value"] for _, data, _ in events[1:4]} == {"r/0": "18", "r/1": "19", "r/2": "17"}


def watch(client: HttpPeer, prefix: str, **headers: str) -> Reader:
    """Watch from now on. Return when the watch is live."""
    client.send(http_request("GET", f"/v2/watch?prefix={prefix}", **headers))
    assert client.head()[0] == 200
    reader = Reader(client)
    assert reader.next()[0] == "live"
    return reader


def test_http_1_0_gets_events_without_chunks(daemon: HttpDaemon) -> None:
    with daemon.connect() as client:
        client.send(b"GET /v2/watch HTTP/1.0\r\n\r\n")
        status, headers = client.head()
        assert (status, headers["content-type"]) == (200, "text/event-stream")
        assert not {"transfer-encoding", "content-length"} & set(headers)
        assert client.stream.readline() == b"event: live\n"


def test_a_slow_watcher_is_resynchronised(start: Start) -> None:
    daemon = start("[history]\nmax_bytes = 500000\n")
    with daemon.connect_local() as silent, daemon.connect() as writer:
        reader = watch(silent, "much/")
        for number in range(500):  # 5 MB, of which the socket and its buffers take a part
            writer.send(http_request("PUT", f"/v1/much/{number % 20}", f"{number:<10000}".encode()))
            assert writer.response().status == 201
        assert 0 < len(reader.until("reset")) < 480, "the changes that were still in the history"
        items = {str(item["key"]): str(item["value"]).rstrip() for item in reader.until("live")}
        assert items == {f"much/{number % 20}": str(number) for number in range(480, 500)}
        writer.ask("PUT", "/v1/much/after", b"1")
        assert reader.next()[1]["changes"] == {"much/after": "1"}


def test_a_revoked_right_ends_the_watch(start: Start) -> None:
    daemon = start(RULES, is_open=False)
    with daemon.connect() as ann, daemon.connect() as bob:
        anns, bobs = watch(ann, "ann/", Authorization=ANN), watch(bob, "bob/", Authorization=BOB)
        for rules, bob_may_watch in ((RULES + ELSEWHERE, True), (RULES.rpartition(', "watch"')[0] + "]\n", False)):
            daemon.reload(configuration=rules)
            for name, token in (("ann", ANN), ("bob", BOB)):
                assert daemon.ask("PUT", f"/v1/{name}/key", b"1", Authorization=token).status == 201
            assert anns.next()[1]["changes"] == {"ann/key": "1"}
            assert bobs.next()[1]["changes"] == {"bob/key": "1"} if bob_may_watch else bobs.is_ended()
    assert daemon.ask("GET", "/v2/watch?prefix=bob/", Authorization=BOB).status == 403


def test_a_revoked_token_ends_its_watches_and_kept_connections(start: Start) -> None:
    daemon = start(is_open=False)
    with daemon.connect() as ann, daemon.connect() as bob, daemon.connect() as kept, daemon.connect() as idle:
        anns, bobs = watch(ann, "", Authorization=ANN), watch(bob, "", Authorization=BOB)
        for _ in range(3):
            assert kept.ask("GET", "/v1/a", Authorization=BOB).status == 404
            assert idle.ask("GET", "/v1/a", Authorization=ANN).status == 404
        daemon.reload(tokens=f"ann {TOKEN}\n")
        assert kept.is_over()
        assert idle.ask("PUT", "/v1/a", b"1", Authorization=ANN).status == 201
        assert anns.next()[0] == "change"
        assert bobs.is_ended()


def test_a_request_whose_token_is_revoked_before_its_body_arrives_does_not_run(start: Start) -> None:
    daemon = start(is_open=False)
    with daemon.connect() as client:
        head, _, body = http_request("PUT", "/v1/a", b"1", Authorization=BOB, Expect="100-continue").rpartition(b"\r\n")
        client.send(head + b"\r\n")
        assert client.response().status == 100, "the head was accepted"
        daemon.reload(tokens=f"ann {TOKEN}\n")
        client.send(body)
        assert client.response().status == 401
    assert daemon.ask("GET", "/v1/a", Authorization=ANN).status == 404


def test_a_stop_sends_all_events_and_ends_the_stream(start: Start) -> None:
    daemon = start()
    with daemon.connect() as client, daemon.connect() as writer:
        reader = watch(client, "")
        for number in range(100):
            writer.send(http_request("PUT", f"/v1/{number}", b"x" * 10_000))
        assert {writer.response().status for _ in range(100)} == {201}
        daemon.process.terminate()
        assert [list(reader.next()[1]["changes"]) for _ in range(100)] == [[str(number)] for number in range(100)]  # type: ignore[call-overload]
        assert reader.is_ended()
