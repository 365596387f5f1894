"""A daemon as HTTP clients see it: on a TCP port and on a Unix socket for HTTP."""

import json
import pathlib
from typing import Any

from tests.harness.daemon import Daemon
from tests.harness.http_peer import HttpPeer, HttpResponse
from tests.harness.processes import Process
from tests.harness.real_daemon import TOKEN

OTHER_TOKEN = "another-token-of-some-length"  # noqa: S105 - of no real daemon
# How the clients that have these tokens show themselves.
ANN, BOB = f"Bearer {TOKEN}", f"Bearer {OTHER_TOKEN}"


class HttpDaemon:
    """The tokens' file knows ann and bob; with ``is_open``, HTTP on TCP asks for no token."""

    def __init__(self, folder: pathlib.Path, configuration: str, *flags: str, is_open: bool) -> None:
        self.http_path = str(folder / "h")
        tokens = folder / "token"
        tokens.write_text(f"ann {TOKEN}\nbob {OTHER_TOKEN}\n")
        tokens.chmod(0o600)
        access = ["--http-open"] if is_open else ["--token-file", str(tokens)]
        self.daemon = Daemon(folder, configuration, "--http", "127.0.0.1:0", "--http", self.http_path, *access, *flags)
        self.kv = self.daemon.kv
        listening = str(self.status()["listening"])
        self.port = int(listening.partition("http://127.0.0.1:")[2].split()[0])

    @property
    def process(self) -> Process:
        """Its process."""
        return self.daemon.process

    def status(self) -> dict[str, Any]:
        """What it says over its own socket."""
        return self.daemon.status()

    def connect(self) -> HttpPeer:
        """A connection over TCP; the test closes it."""
        return HttpPeer.tcp(self.port)

    def connect_local(self) -> HttpPeer:
        """A connection over the Unix socket for HTTP; the test closes it."""
        return HttpPeer.unix(self.http_path)

    def ask(self, method: str, target: str, body: bytes | None = None, **headers: str) -> HttpResponse:
        """One request on a connection of its own."""
        with self.connect() as client:
            return client.ask(method, target, body, **headers)

    def post(self, target: str, body: object, **headers: str) -> HttpResponse:
        """A POST of JSON."""
        return self.ask("POST", target, json.dumps(body).encode(), Content_Type="application/json", **headers)

    def reload(self, *, configuration: str | None = None, tokens: str | None = None) -> None:
        """Have it read its files again, with other contents; returns when it has read them."""
        if configuration is not None:
            self.daemon.configure(configuration)
        if tokens is not None:
            self.daemon.write_token(tokens)
        done = self.kv("reload")
        assert done.returncode == 0, done.stderr

    def kill(self) -> None:
        """kill -9."""
        self.daemon.kill()
