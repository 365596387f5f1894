"""What the tests of the command line share: the real command, the real daemon."""

import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "kv"]
DEADLINE_S = 30


def environment(socket: str | None, **more: str) -> dict[str, str]:
    """An environment without anybody's own kvd in it."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("KVD_", "_ARGCOMPLETE"))}
    clean |= {"PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8", **more}
    return clean if socket is None else clean | {"KVD_SOCKET": socket}


class Kv:
    """``kv`` as a person runs it, against one socket."""

    command = COMMAND

    def __init__(self, socket: str | None) -> None:
        self.socket = socket

    def __call__(
        self, *arguments: str | bytes, stdin: bytes = b"", **more: str
    ) -> "subprocess.CompletedProcess[bytes]":
        """Run to the end."""
        return subprocess.run(  # noqa: S603 (the command under test)
            [*COMMAND, *arguments], input=stdin, capture_output=True, env=environment(self.socket, **more),
            timeout=DEADLINE_S, check=False,
        )  # fmt: skip

    def environment(self) -> dict[str, str]:
        """What it runs with, for tests that start it by other means."""
        return environment(self.socket)

    def ok(self, *arguments: str | bytes, stdin: bytes = b"", **more: str) -> str:
        """Run; must succeed and print nothing on stderr. What it printed."""
        done = self(*arguments, stdin=stdin, **more)
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout.decode()

    def fails(self, status: int, *arguments: str | bytes, stdin: bytes = b"", **more: str) -> str:
        """Run; must end with ``status`` and one line on stderr, and print nothing. That line."""
        done = self(*arguments, stdin=stdin, **more)
        error = done.stderr.decode()
        assert (done.returncode, done.stdout) == (status, b""), error
        assert error.startswith("kv: error: ")
        assert error.count("\n") == 1
        return error

    def start(self, *arguments: str, **options: object) -> "subprocess.Popen[bytes]":
        """Start; the test ends it."""
        return subprocess.Popen(  # type: ignore[call-overload, no-any-return]  # noqa: S603 (the command under test)
            [*COMMAND, *arguments], env=environment(self.socket), **options
        )


def _serve(socket: str, *flags: str) -> "subprocess.Popen[bytes]":
    """A daemon in the foreground, ready."""
    daemon = subprocess.Popen(  # noqa: S603 (the command under test)
        [*COMMAND, "serve", "--socket", socket, *flags],
        env=environment(None),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert daemon.stdout is not None
    said = b""
    for line in daemon.stdout:
        said += line
        if b"Kvd started" in line:
            return daemon
    raise AssertionError(f"the daemon did not start: {said.decode()}")


def _end(daemon: "subprocess.Popen[bytes]") -> None:
    if daemon.poll() is None:
        daemon.send_signal(signal.SIGTERM)
    daemon.communicate(timeout=DEADLINE_S)


@pytest.fixture
def serving() -> Iterator[Callable[..., "tuple[Kv, subprocess.Popen[bytes]]"]]:
    """Starts a daemon with these flags: ``kv`` for it, and its process. One beside others has another socket."""
    started: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory() as folder:

        def start(*flags: str) -> "tuple[Kv, subprocess.Popen[bytes]]":
            beside = any(process.poll() is None for process in started)
            socket = f"{folder}/kvd{len(started) if beside else ''}.sock"
            started.append(_serve(socket, *flags))
            return Kv(socket), started[-1]

        yield start
        for process in started:
            _end(process)


@pytest.fixture
def kv(serving: Callable[..., "tuple[Kv, subprocess.Popen[bytes]]"]) -> Kv:
    """``kv`` with an empty daemon of the test's own."""
    return serving()[0]


@pytest.fixture(scope="module")
def shared_kv() -> Iterator[Kv]:
    """``kv`` with one daemon for all tests of the module."""
    with tempfile.TemporaryDirectory() as folder:
        process = _serve(f"{folder}/kvd.sock")
        yield Kv(f"{folder}/kvd.sock")
        _end(process)


@pytest.fixture
def alone(tmp_path: pathlib.Path) -> Kv:
    """``kv`` where no daemon runs."""
    return Kv(str(tmp_path / "nobody.sock"))
