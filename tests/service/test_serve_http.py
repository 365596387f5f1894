"""HTTP with a disk whose syncs are held back, with limits on connections, and during a start."""

import os
import pathlib
import select
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.harness.http_peer import HttpPeer, http_request
from tests.harness.real_daemon import STARTED
from tests.service.test_serve_durability import SlowDisk

if TYPE_CHECKING:
    from tests.harness.real_daemon import RealDaemon


# In every interpreter: the import of prometheus-client leaves the file $MARK behind.
NOTE_THE_IMPORT = """
import os, sys

def note(event, arguments):
    if event == "import" and arguments[0] == "prometheus_client":
        open(os.environ["MARK"], "w").close()

sys.addaudithook(note)
"""


@pytest.fixture
def disk(kvd: "RealDaemon") -> Iterator[SlowDisk]:
    slow = SlowDisk(kvd)
    yield slow
    slow.release()


def connect(kvd: "RealDaemon") -> HttpPeer:
    return HttpPeer.unix(f"{kvd.folder}/h")


def has_no_reply(client: HttpPeer, kvd: "RealDaemon") -> bool:
    """Return whether no answer has come, although another connection has got several replies to later requests."""
    with kvd.connect() as other:
        for _ in range(3):
            assert other.ask(["ping"]) == [True]
    return not select.select([client.socket], [], [], 0)[0]


def test_an_answer_shows_only_what_is_on_the_disk(disk: SlowDisk, kvd: "RealDaemon") -> None:
    process = disk.serve("always", "--http", f"{kvd.folder}/h")
    with connect(kvd) as writer, connect(kvd) as reader, connect(kvd) as other:
        assert writer.ask("PUT", "/v1/old", b"1").status == 201
        disk.hold()
        writer.send(http_request("PUT", "/v1/new", b"1"))
        assert has_no_reply(writer, kvd)
        reader.send(http_request("GET", "/v1/new"))
        assert has_no_reply(reader, kvd), "a reader of the key waits too"
        assert other.ask("GET", "/v1/old").body == b"1", "what is on the disk does not wait"
        writer.send(http_request("GET", "/v1/old"))
        assert has_no_reply(writer, kvd), "in order, after the answer that is held"
        disk.release()
        assert [writer.response().status, writer.response().body, reader.response().body] == [201, b"1", b"1"]
    kvd.stop(process)


def test_a_watch_starts_after_the_answers_that_are_held(disk: SlowDisk, kvd: "RealDaemon") -> None:
    process = disk.serve("always", "--http", f"{kvd.folder}/h")
    with connect(kvd) as client:
        store = client.ask("GET", "/v2/keys").json()["store"]
        disk.hold()
        client.send(http_request("PUT", "/v1/a", b"1") + http_request("GET", f"/v2/watch?from=0.{store}"))
        assert has_no_reply(client, kvd)
        disk.release()
        assert client.response().status == 201
        assert client.head()[1]["content-type"] == "text/event-stream"
        chunks = client.chunks()
        assert [next(chunks).partition(b"\n")[0] for _ in range(2)] == [b"event: live", b"event: change"]
    kvd.stop(process)


def test_one_connection_too_many_is_429(kvd: "RealDaemon") -> None:
    # Not serve(), whose closed connection counts until the daemon has noticed.
    process = kvd.start("--config", kvd.configure("limits.max_connections = 2\n"), "--http", f"{kvd.folder}/h")
    assert process.stdout is not None
    assert process.stdout.readline() == STARTED
    with connect(kvd) as first, connect(kvd) as second:
        assert [client.ask("GET", "/v1/a").status for client in (first, second)] == [404, 404]
        with connect(kvd) as third:
            third.send(http_request("GET", "/v1/a"))
            refused = third.response()
            assert refused.status == 429
            assert "retry-after" in refused.headers
            assert third.is_over()
        assert first.ask("GET", "/v1/a").status == 404
    kvd.stop(process)


@pytest.mark.parametrize("is_on", [True, False], ids=["with HTTP", "without"])
def test_the_metrics_library_is_loaded_before_the_start_ends(kvd: "RealDaemon", is_on: bool) -> None:
    with kvd.elsewhere() as folder:
        mark = pathlib.Path(folder, "mark")
        flags = ["--http", f"{kvd.folder}/h"] if is_on else []
        process = kvd.start(*flags, env=kvd.with_hook(NOTE_THE_IMPORT, MARK=str(mark)))
        assert process.stdout is not None
        assert process.stdout.readline() == STARTED
        assert mark.exists(), "its import would hold the loop for 30 ms"
        assert "kvd_info" in kvd.ask(["exposition"])[0]
        assert kvd.stop(process) == 0


def test_a_detached_daemon_answers_over_http_too(kvd: "RealDaemon") -> None:
    pid = kvd.detach("--http", "127.0.0.1:0", "--http", f"{kvd.folder}/h", "--http-open")
    port = int(kvd.status()["listening"].partition("http://127.0.0.1:")[2].split()[0])
    with HttpPeer.tcp(port) as client:
        assert client.ask("PUT", "/v1/a", b"1").status == 201
    with connect(kvd) as client:
        assert client.ask("GET", "/v1/a").body == b"1"
    assert os.stat(f"{kvd.folder}/h").st_mode & 0o777 == 0o600
    kvd.end(pid)
    assert kvd.files() == []


def test_the_command_that_detaches_reports_a_port_in_use(kvd: "RealDaemon") -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        error = kvd.refused(74, "--daemon", "--http", f"{kvd.folder}/h", "--http", address, "--http-open")
    assert error == f"cannot listen on tcp {address}: Address already in use"
