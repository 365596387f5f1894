"""`kv serve` as a person starts it, in a folder of its own that is also its HOME; and raw connections to it."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from kvd.service.locks import AlreadyRunning, LockFile

ROOT = pathlib.Path(__file__).parents[2]
DEADLINE_S = 30
STARTED = b"Kvd started. Press ctrl-c to stop.\n"
SCALE = int(os.environ.get("KVD_TEST_SCALE", "1"))
Process = subprocess.Popen[bytes]
# Of whoever runs the tests: nothing of it may decide how a daemon behaves.
_NOT_INHERITED = (
    "KVD_",
    "XDG_",
    "LISTEN_",
    "NOTIFY_",
    "WATCHDOG_",
    "JOURNAL_",
    "INVOCATION_",
    "PYTHONUNBUFFERED",
)

# Run by the interpreter before anything else: does something at the moment when the daemon binds its Unix socket.
# The code under test is as it is; only the process's fate is decided.
AT_BIND = """
import os, signal, sys

def at_bind(event, arguments):
    if event == "socket.bind" and isinstance(arguments[1], str):
        what, _, path = os.environ["AT_BIND"].partition(" ")
        if what == "wait":
            with open(path, "rb") as fifo:
                fifo.read()
        elif what == "raise":
            raise ValueError("not a daemon's day")
        else:
            os.kill(os.getpid(), signal.Signals[what])

sys.addaudithook(at_bind)
"""


def frame(value: object) -> bytes:
    """A frame with ``value`` in it."""
    payload = msgspec.msgpack.encode(value)
    return len(payload).to_bytes(4, "big") + payload


class Peer:
    """A connection that says what it is told to."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.socket.settimeout(DEADLINE_S)
        self._stream = connected.makefile("rb")

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self.socket.close()

    def send(self, *requests: object) -> None:
        """One frame of requests."""
        self.socket.sendall(frame(list(requests)))

    def ask(self, *requests: object) -> Any:  # noqa: ANN401 - whatever the daemon says
        """One frame of requests; the next frame that comes."""
        self.send(*requests)
        return self.receive()

    def receive(self) -> Any:  # noqa: ANN401 - whatever the daemon says
        """The next frame's payload; EOFError at the end of the stream, however it ends."""
        try:
            head = self._stream.read(4)
            payload = self._stream.read(int.from_bytes(head, "big"))
        except ConnectionResetError:
            raise EOFError from None
        if not payload:
            raise EOFError
        return msgspec.msgpack.decode(payload)

    def frames(self) -> Iterator[Any]:
        """All frames to the end of the stream."""
        try:
            while True:
                yield self.receive()
        except EOFError:
            return


class RealDaemon:
    """A place for one daemon at a time."""

    token = "a-token-of-thirty-two-characters"  # noqa: S105 - of no real daemon

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.path = f"{folder}/s"
        self.lock_path = f"{folder}/s.lock"
        self.log_path = f"{folder}/log"
        self.config_path = f"{folder}/kvd.toml"
        # What the command is started by.
        self.wrapper: list[str] = []
        self.started: list[Process] = []

    # ------------------------------------------------------------------ starting

    def environment(self, **more: str) -> dict[str, str]:
        """An environment with nobody's own kvd or service manager in it."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)}
        return {**kept, "HOME": self.folder, "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8", **more}

    def with_hook(self, code: str, **more: str) -> dict[str, str]:
        """An environment in which every interpreter runs ``code`` before anything else."""
        hooks = pathlib.Path(self.folder, "hooks")
        hooks.mkdir(exist_ok=True)
        (hooks / "sitecustomize.py").write_text(code, encoding="utf-8")
        return self.environment(PYTHONPATH=f"{hooks}:{ROOT}", **more)

    def at_bind(self, what: str) -> dict[str, str]:
        """An environment in which this happens when the socket is bound: a signal's name, raise, or wait FIFO."""
        return self.with_hook(AT_BIND, AT_BIND=what)

    def command(self, *flags: str) -> list[str]:
        """How it is started. Later flags of the same name count."""
        serve = [sys.executable, "-m", "kv", "serve", "--socket", self.path, "--log-to", self.log_path]
        return [*self.wrapper, *serve, *flags]

    def start(self, *flags: str, **options: object) -> Process:
        """Start it in the foreground; both outputs are pipes."""
        settings: dict[str, object] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": self.environment()}
        settings |= options
        process: Process = subprocess.Popen(self.command(*flags), **settings)  # type: ignore[call-overload]  # noqa: S603 - the daemon under test
        self.started.append(process)
        return process

    def start_in_shell(self, script: str, *flags: str, **options: object) -> Process:
        """Run a shell script in which "$@" is the command; both outputs are pipes, and their end is not waited for."""
        settings: dict[str, object] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": self.environment()}
        command = ["/bin/sh", "-c", script, "sh", *self.command(*flags)]
        process: Process = subprocess.Popen(command, **settings | options)  # type: ignore[call-overload]  # noqa: S603 - our own words
        self.started.append(process)
        return process

    def serve(self, *flags: str, **options: object) -> Process:
        """Start it in the foreground, and wait until it says that it serves, also in its log."""
        process = self.start(*flags, **options)
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said == STARTED, (said, process.communicate(timeout=DEADLINE_S))
        assert self.ask(["ping"]) == [True]
        return process

    def run(self, *flags: str, **options: object) -> "subprocess.CompletedProcess[bytes]":
        """Start it, and wait for what was started and for whoever has its outputs."""
        process = self.start(*flags, **options)
        said, error = process.communicate(timeout=DEADLINE_S)
        return subprocess.CompletedProcess(process.args, process.returncode, said, error)

    def detach(self, *flags: str, **options: object) -> int:
        """Start it with --daemon, which must succeed in silence; its pid."""
        done = self.run("--daemon", *flags, **options)
        assert (done.returncode, done.stdout or b"", done.stderr or b"") == (0, b"", b"")
        return int(self.status()["pid"])

    def refused(self, exit_code: int, *flags: str, **options: object) -> str:
        """Start what must not start: it says so in one line, which is returned, and leaves everything as it was."""
        before = self.files()
        done = self.run(*flags, **options)
        error = done.stderr.decode()
        assert (done.returncode, done.stdout) == (exit_code, b""), error
        assert error.startswith("kv: error: ")
        assert error.count("\n") == 1
        assert self.files() == before, "something was left or taken away"
        return error.removeprefix("kv: error: ").rstrip("\n")

    def kv(self, *arguments: str, **more: str) -> "subprocess.CompletedProcess[bytes]":
        """A client's command, to its end."""
        return subprocess.run(  # noqa: S603 - our own command
            [sys.executable, "-m", "kv", *arguments], env=self.environment(KVD_SOCKET=self.path, **more),
            capture_output=True, timeout=DEADLINE_S, check=False,
        )  # fmt: skip

    def configure(self, text: str) -> str:
        """Write the configuration file; its path."""
        with open(self.config_path, "w", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o600)) as f:
            f.write(text)
        return self.config_path

    def write_token(self) -> str:
        """Write the file with the token; its path."""
        path = pathlib.Path(self.folder, "token")
        path.write_text(f"{self.token}\n", encoding="ascii")
        return str(path)

    # ------------------------------------------------------------------ looking

    def connect(self) -> Peer:
        """Connect, waiting while the queue is full."""
        connecting = socket.socket(socket.AF_UNIX)
        connecting.connect(self.path)
        return Peer(connecting)

    def connect_tcp(self, port: int, host: str = "127.0.0.1") -> Peer:
        """Connect to a port of the loopback."""
        return Peer(socket.create_connection((host, port)))

    def ask(self, *requests: object) -> Any:  # noqa: ANN401 - whatever the daemon says
        """The replies to one frame on a connection of its own."""
        with self.connect() as peer:
            return peer.ask(*requests)

    def status(self) -> dict[str, Any]:
        """What the daemon says of itself."""
        return dict(self.ask(["status"])[0])

    def wait_until_it_answers(self) -> None:
        """For a daemon that cannot say that it has started."""

        def answers() -> bool:
            try:
                return bool(self.ask(["ping"]) == [True])
            except (FileNotFoundError, ConnectionRefusedError):
                return False

        eventually(answers)

    def wait_at_fifo(self, path: str) -> int:
        """Wait until somebody reads from the FIFO; the writing end, whose closing lets them go on."""
        writing: list[int] = []

        def is_open() -> bool:
            try:
                writing.append(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
            except OSError:
                return False  # nobody reads yet
            return True

        eventually(is_open)
        return writing[0]

    def eventually(self, condition: Callable[[], object]) -> None:
        """Wait until ``condition`` holds."""
        eventually(condition)

    @contextmanager
    def elsewhere(self) -> Iterator[str]:
        """Another directory."""
        with tempfile.TemporaryDirectory(prefix="kvd-") as folder:
            yield folder

    def files(self) -> list[str]:
        """What is in its folder, without the log and what the tests put there."""
        return sorted(set(os.listdir(self.folder)) - {"log", "kvd.toml", "hooks", "fifo", "token"})

    def log(self) -> list[str]:
        """The lines of its log, without the time."""
        text = pathlib.Path(self.log_path).read_text(encoding="utf-8")
        return [line.split(" ", 2)[2] for line in text.splitlines()]

    def is_locked(self) -> bool:
        """Whether a process holds the lock. Removes the file if not."""
        lock = LockFile(self.lock_path)
        try:
            lock.acquire()
        except AlreadyRunning:
            return True
        lock.release()
        return False

    # ------------------------------------------------------------------ ending

    def stop(self, process: Process, number: int = signal.SIGTERM) -> int:
        """Stop what was started in the foreground; its exit code."""
        process.send_signal(number)
        return process.wait(DEADLINE_S)

    def end(self, pid: int, number: int = signal.SIGTERM) -> None:
        """Stop a detached daemon, and wait until its process is gone."""
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        signal.pidfd_send_signal(descriptor, number)
        wait_readable(descriptor)
        os.close(descriptor)

    def clean_up(self) -> None:
        """End whatever still runs."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
        for pid in processes_of(self.folder):
            self.end(pid, signal.SIGKILL)
        for process in self.started:
            process.communicate(timeout=DEADLINE_S)


def processes_of(folder: str) -> list[int]:
    """The processes that were started with this folder as HOME, which is nobody else's; never what a file names.

    A lock file may hold the pid of anybody, the tests' own too.
    """
    mark = b"\0" + os.fsencode(f"HOME={folder}") + b"\0"
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                environment = pathlib.Path("/proc", entry, "environ").read_bytes()
            except OSError:
                continue  # gone, or another user's
            if mark in b"\0" + environment:
                found.append(int(entry))
    return found


def wait_readable(descriptor: int) -> None:
    """Wait until there is something to read, or the process of a pidfd has ended."""
    import select

    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    assert poll.poll(DEADLINE_S * 1000), "waited in vain"


def eventually(condition: Callable[[], object]) -> None:
    """Wait until ``condition`` holds; fail after the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
