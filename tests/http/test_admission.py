"""Admission over HTTP: tokens, host names, origins, and the replies to requests that are not admitted."""

import pathlib
import subprocess
import sys

import pytest

from tests.harness.http_daemon import ANN, BOB, HttpDaemon
from tests.harness.processes import ROOT
from tests.harness.real_daemon import TOKEN
from tests.harness.waiting import DEADLINE_S
from tests.http.conftest import Start

RULES = """
[[access]]
token = "ann"
rights = ["read", "write", "watch"]

[[access]]
prefix = "bob/"
token = "bob"
rights = ["read", "write", "watch"]

[[access]]
prefix = "open/"
token = "bob"
rights = ["read"]
"""


@pytest.fixture(scope="module")
def ruled(start: Start) -> HttpDaemon:
    """A daemon with tokens and rules."""
    return start(RULES, is_open=False)


@pytest.mark.parametrize("sent", [{}, {"Authorization": "Bearer wrong-token-0123456789"}, {"Authorization": "Bearer"},
                                  {"Authorization": f"Basic {TOKEN}"}, {"Authorization": TOKEN}])  # fmt: skip
@pytest.mark.parametrize(
    ("method", "target"), [("GET", "/v1/a"), ("PUT", "/v1/a"), ("GET", "/v2/keys"), ("GET", "/status"), ("GET", "/no")]
)
def test_without_a_valid_token_everything_is_401(
    ruled: HttpDaemon, sent: dict[str, str], method: str, target: str
) -> None:
    answer = ruled.ask(method, target, b"x" if method == "PUT" else None, **sent)
    assert answer.status == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert ruled.ask("GET", "/v1/a", Authorization=ANN).status == 404, "nothing was written"


def test_a_request_with_a_token_is_admitted_and_the_tokens_name_is_the_author(ruled: HttpDaemon) -> None:
    assert ruled.ask("PUT", "/v1/by-ann", b"1", Authorization=ANN).status == 201
    assert ruled.ask("GET", "/v1/by-ann", Authorization=ANN.replace("Bearer", "bearer")).body == b"1"
    assert b"ann" in ruled.kv("history", "by-ann").stdout


def test_the_token_of_each_request_counts_not_the_connections_first(ruled: HttpDaemon) -> None:
    with ruled.connect() as client:
        assert client.ask("PUT", "/v1/mine", b"1", Authorization=ANN).status == 201
        assert client.ask("GET", "/v1/mine", Authorization=BOB).status == 403
        assert client.ask("GET", "/v1/mine", Authorization=ANN).body == b"1"
        assert client.ask("GET", "/v1/mine").status == 401


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [
        ("GET", "/v1/secret", None), ("HEAD", "/v1/secret", None), ("PUT", "/v1/secret", b"x"),
        ("DELETE", "/v1/secret", None), ("GET", "/v1/", b'["bob/a", "secret"]'), ("PUT", "/v1/open/x", b"x"),
        ("PUT", "/v1/", b'[{"Key": "bob/b", "Value": "x"}, {"Key": "secret", "Value": "x"}]'),
        ("DELETE", "/v1/", b'["bob/a", "secret"]'), ("GET", "/v2/keys/secret", None), ("PUT", "/v2/keys/secret", b"x"),
        ("DELETE", "/v2/keys/secret", None), ("GET", "/v2/keys", None), ("GET", "/v2/keys?prefix=b", None),
        ("GET", "/v2/watch", None), ("GET", "/v2/watch?prefix=secret", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("exists", [True, False])
def test_a_denied_request_changes_nothing_and_reveals_nothing(
    ruled: HttpDaemon, method: str, target: str, body: bytes | None, exists: bool
) -> None:
    ruled.ask("PUT", "/v1/bob/a", b"a", Authorization=BOB)
    if exists:
        ruled.ask("PUT", "/v1/secret", b"s", Authorization=ANN)
    else:
        ruled.ask("DELETE", "/v1/secret", Authorization=ANN)
    version = ruled.status()["version"]
    answer = ruled.ask(method, target, body, Authorization=BOB)
    assert answer.status == 403
    assert b"secret" not in answer.body.replace(b"'secret'", b"")  # the reply may quote only the key of the request
    assert ruled.status()["version"] == version


@pytest.mark.parametrize(
    "body",
    [
        {"set": {"bob/b": "1"}, "compare": {"secret": 0}}, {"set": {"bob/b": "1", "secret": "1"}},
        {"delete": ["secret"], "set": {"bob/b": "1"}}, {"set": {"open/x": "1"}}, {"compare": {"secret": 0}},
    ],
)  # fmt: skip
def test_a_partly_allowed_transaction_is_denied(ruled: HttpDaemon, body: dict[str, object]) -> None:
    version = ruled.status()["version"]
    assert ruled.post("/v2/transaction", body, Authorization=BOB).status == 403
    assert ruled.status()["version"] == version


def test_allowed_requests_run(ruled: HttpDaemon) -> None:
    assert ruled.post("/v2/transaction", {"set": {"bob/t": "1"}}, Authorization=BOB).status == 200
    assert ruled.ask("GET", "/v2/keys?prefix=bob/", Authorization=BOB).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil", "", "10.0.0.1", "127.0.0.2", "[::2]"]
)
def test_another_host_is_rejected(daemon: HttpDaemon, host: str) -> None:
    answer = daemon.ask("PUT", "/v1/a", b"x", Host=host)
    assert answer.status == 421
    assert daemon.ask("GET", "/v1/a").status == 404


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:4000", "127.0.0.1:1", "[::1]:4000", "localhost."])
def test_the_names_of_this_host_are_accepted(daemon: HttpDaemon, host: str) -> None:
    assert daemon.ask("PUT", "/v1/a", b"x", Host=host).status == 201


def test_a_request_without_a_host_is_a_bad_request(daemon: HttpDaemon) -> None:
    with daemon.connect() as client:
        client.send(b"GET /v1/a HTTP/1.1\r\n\r\n")
        assert client.response().status == 400


def test_another_origin_is_rejected_and_no_reply_allows_one(daemon: HttpDaemon) -> None:
    answer = daemon.ask("PUT", "/v1/a", b"x", Origin="http://evil.example")
    assert answer.status == 403
    assert not [name for name in answer.headers if name.startswith("access-control")]
    answer = daemon.ask("OPTIONS", "/v1/a", Origin="http://evil.example", Access_Control_Request_Method="PUT")
    assert not [name for name in answer.headers if name.startswith("access-control")]
    answer = daemon.ask("OPTIONS", "/v1/a", Origin="http://127.0.0.1")
    assert answer.status == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert daemon.ask("GET", "/v1/a").status == 404


def test_over_the_unix_socket_the_kernel_identifies_the_client(ruled: HttpDaemon) -> None:
    with ruled.connect_local() as client:
        assert client.ask("PUT", "/v1/local", b"1", Host="anything").status == 201
    assert b"local" in ruled.kv("get", "local").stdout
    assert pathlib.Path(ruled.http_path).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--http", "127.0.0.1:0"], "token"),
        (["--http", "0.0.0.0:0", "--http-open"], "loopback"),
        (["--http", "192.0.2.1:0", "--http-open"], "loopback"),
        (["--http", "nonsense"], "HOST:PORT"),
        (["--http-open"], "http"),
    ],
)
def test_an_open_or_invalid_http_configuration_does_not_start(
    tmp_path: pathlib.Path, flags: list[str], reason: str
) -> None:
    result = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "kv", "serve", "--socket", f"{tmp_path}/s", *flags],
        cwd=ROOT, capture_output=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert result.returncode in (2, 78), result
    assert reason in result.stderr.decode()
    assert not pathlib.Path(tmp_path, "s").exists()


def test_without_http_its_modules_are_not_imported(tmp_path: pathlib.Path) -> None:
    script = (
        "import sys, threading, os, signal, socket, time\n"
        "def answers():\n"
        "    with socket.socket(socket.AF_UNIX) as peer:\n"
        "        try:\n"
        "            peer.connect(sys.argv[1])\n"
        "        except OSError:\n"
        "            return False\n"
        "        peer.sendall(b'\\0\\0\\0\\x07\\x91\\x91\\xa4ping')\n"
        "        return len(peer.recv(1)) == 1\n"
        "def look():\n"
        "    while not answers(): time.sleep(0.01)\n"
        "    found = [name for name in sys.modules if name.startswith(('kvd.http', 'httptools'))]\n"
        "    open(sys.argv[2], 'w').write(repr(found))\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "threading.Thread(target=look, daemon=True).start()\n"
        "from kvd.service.serve import serve\n"
        "sys.exit(serve({'listen.socket': sys.argv[1]}, None, daemon=False))\n"
    )
    result = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-c", script, f"{tmp_path}/s", f"{tmp_path}/found"],
        cwd=ROOT, capture_output=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert (result.returncode, (tmp_path / "found").read_text()) == (0, "[]"), result
