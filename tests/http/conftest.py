"""Real daemons that speak HTTP, and a client that shows every byte."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, Self

import msgspec
import pytest

ROOT = pathlib.Path(__file__).parents[2]
DEADLINE_S = 30
TOKEN = "a-token-of-thirty-two-characters"  # noqa: S105 - of no real daemon
OTHER_TOKEN = "another-token-of-some-length"  # noqa: S105
# How those show themselves to whom these tokens were given.
ANN, BOB = f"Bearer {TOKEN}", f"Bearer {OTHER_TOKEN}"
Start = Callable[..., "Daemon"]


class Answer:
    """One response: its status, its headers with names in lower case, its body."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def json(self) -> Any:  # noqa: ANN401 - whatever the body says
        return json.loads(self.body)

    def __repr__(self) -> str:
        return f"{self.status} {self.headers} {self.body[:300]!r}"


class Client:
    """A connection without any manners of its own."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.socket.settimeout(DEADLINE_S)
        self.stream = connected.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def ask(self, method: str, target: str, body: bytes | None = None, **headers: str) -> Answer:
        """One request as a client would write it; its answer. Header names have _ for -."""
        self.send(request(method, target, body, **headers))
        return self.answer(is_head=method == "HEAD")

    def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers; EOFError if nothing comes any more."""
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

    def answer(self, *, is_head: bool = False) -> Answer:
        status, headers = self.head()
        has_body = not is_head and status not in (100, 204, 304)
        body = self.stream.read(int(headers["content-length"])) if has_body else b""
        return Answer(status, headers, body)

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


def request(method: str, target: str, body: bytes | None = None, **headers: str) -> bytes:
    """A request's bytes."""
    given = {"Host": "127.0.0.1"} | {name.replace("_", "-"): value for name, value in headers.items()}
    if body is not None:
        given["Content-Length"] = str(len(body))
    lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    return f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode() + (body or b"")


class Daemon:
    """``kv serve`` in the foreground, with HTTP on TCP and on a Unix socket."""

    def __init__(self, folder: pathlib.Path, configuration: str, *flags: str, is_open: bool) -> None:
        self.path, self.http_path = str(folder / "s"), str(folder / "h")
        self.log_path = folder / "log"
        self._tokens, self._config = folder / "tokens", folder / "kvd.toml"
        for file, text in ((self._tokens, f"ann {TOKEN}\nbob {OTHER_TOKEN}\n"), (self._config, configuration)):
            file.write_text(text)
            file.chmod(0o600)
        who = ["--http-open"] if is_open else ["--token-file", str(self._tokens)]
        command = [sys.executable, "-m", "kv", "serve", "--socket", self.path, "--config", str(self._config)]
        command += ["--http", "127.0.0.1:0", "--http", self.http_path, *who, *flags]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("KVD_")}
        self.process = subprocess.Popen(  # noqa: S603 - the daemon under test
            command, stdout=subprocess.PIPE, stderr=self.log_path.open("wb"), env={**clean, "PYTHONPATH": str(ROOT)}
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"Kvd started. Press ctrl-c to stop.\n", self.log()
        listening = str(self.status()["listening"])
        self.port = int(listening.partition("http://127.0.0.1:")[2].split()[0])

    def status(self) -> dict[str, Any]:
        """What it says over its own socket."""
        asked = msgspec.msgpack.encode([["status"]])
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(DEADLINE_S)
            asking.connect(self.path)
            asking.sendall(len(asked).to_bytes(4, "big") + asked)
            stream = asking.makefile("rb")
            return dict(msgspec.msgpack.decode(stream.read(int.from_bytes(stream.read(4), "big")))[0])

    def connect(self) -> Client:
        """Over TCP."""
        return Client(socket.create_connection(("127.0.0.1", self.port)))

    def connect_local(self) -> Client:
        """Over the Unix socket for HTTP."""
        connecting = socket.socket(socket.AF_UNIX)
        connecting.connect(self.http_path)
        return Client(connecting)

    def ask(self, method: str, target: str, body: bytes | None = None, **headers: str) -> Answer:
        """One request on a connection of its own."""
        with self.connect() as client:
            return client.ask(method, target, body, **headers)

    def post(self, target: str, body: object, **headers: str) -> Answer:
        """A POST of JSON."""
        return self.ask("POST", target, json.dumps(body).encode(), Content_Type="application/json", **headers)

    def kv(self, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
        """A command of ours over the socket."""
        return subprocess.run(  # noqa: S603 - our own command
            [sys.executable, "-m", "kv", *arguments],
            env={**os.environ, "KVD_SOCKET": self.path, "PYTHONPATH": str(ROOT)},
            capture_output=True, timeout=DEADLINE_S, check=False,
        )  # fmt: skip

    def reload(self, *, configuration: str | None = None, tokens: str | None = None) -> None:
        """Have it read its files again, with other contents; returns when that has happened."""
        if configuration is not None:
            self._config.write_text(configuration)
        if tokens is not None:
            self._tokens.write_text(tokens)
        done = self.kv("reload")
        assert done.returncode == 0, done.stderr

    def log(self) -> str:
        return self.log_path.read_text()

    def end(self) -> None:
        """See that it has served to the end without a fault of its own, and stops as it should."""
        try:
            if self.process.poll() is None:
                self.process.terminate()
            assert self.process.wait(DEADLINE_S) == 0, self.log()
            assert "ERROR" not in self.log(), self.log()
            assert "Traceback" not in self.log(), self.log()
        finally:
            self.process.kill()
            self.process.wait()
            if self.process.stdout is not None:
                self.process.stdout.close()


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """Start daemons. All have to be in order when the module's tests are over."""
    daemons: list[Daemon] = []
    with tempfile.TemporaryDirectory(prefix="kvd-", ignore_cleanup_errors=True) as folder:

        def begin(configuration: str = "", *flags: str, is_open: bool = True) -> Daemon:
            place = pathlib.Path(folder, str(len(daemons)))
            place.mkdir()
            daemons.append(Daemon(place, configuration, *flags, is_open=is_open))
            return daemons[-1]

        yield begin
        for daemon in daemons:
            daemon.end()


@pytest.fixture(scope="module")
def shared(start: Start) -> Daemon:
    """One for a whole module, open."""
    return start()


@pytest.fixture
def daemon(shared: Daemon) -> Daemon:
    """The same, empty."""
    keys = [item["key"] for item in shared.ask("GET", "/v2/keys?limit=60000").json()["items"]]
    if keys:
        assert shared.post("/v2/delete", {"keys": keys}).status == 200
    return shared
