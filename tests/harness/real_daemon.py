"""`kv serve` as a person or a script starts it, in a folder of its own that is also its HOME."""

import os
import pathlib
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Self, TypeVar

from kvd.service.locks import AlreadyRunning, LockFile
from tests.harness.kv_command import Kv
from tests.harness.processes import KV, ROOT, Completed, Process, environment, kill, processes_of, wait_readable
from tests.harness.raw_peer import RawPeer
from tests.harness.waiting import DEADLINE_S, eventually

STARTED = b"Kvd started. Press ctrl-c to stop.\n"
TOKEN = "a-token-of-thirty-two-characters"  # noqa: S105 - of no real daemon

# The interpreter runs this before anything else: it does something at the moment when the daemon binds its Unix socket.
# The code under test is as it is; only the fate of the process is decided.
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


Peer = TypeVar("Peer", bound=RawPeer)


class RealDaemon:
    """A place for one daemon at a time: in the foreground, or detached by the real double fork.

    ``command`` begins the command line: of `kv`, or of a daemon with a planted bug. ``variables`` are added to the
    environment. The end of the context kills what still runs.
    """

    token = TOKEN

    def __init__(
        self, folder: str | pathlib.Path, *, command: Sequence[str] = tuple(KV), variables: dict[str, str] | None = None
    ) -> None:
        self.folder = pathlib.Path(folder)
        self.path = f"{folder}/s"
        self.lock_path = f"{folder}/s.lock"
        self.log_path = f"{folder}/log"
        self.config_path = f"{folder}/kvd.toml"
        # What starts the command: a shell, or a service manager.
        self.wrapper: list[str] = []
        self.started: list[Process] = []
        # What a subclass has opened, to be closed at the end.
        self._resources = ExitStack()
        self._peers: list[RawPeer] = []
        self._command = list(command)
        self._variables = variables or {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.clean_up()

    @property
    def address(self) -> str:
        """What a client connects to."""
        return self.path

    @property
    def kv(self) -> Kv:
        """The command line, for this daemon."""
        return Kv(self.path, HOME=str(self.folder))

    # ------------------------------------------------------------------ starting

    def environment(self, **more: str) -> dict[str, str]:
        """The environment of the daemon, by which ``clean_up`` finds its processes."""
        return environment(**{"HOME": str(self.folder)} | self._variables | more)

    def with_hook(self, code: str, **more: str) -> dict[str, str]:
        """An environment in which every interpreter runs ``code`` before anything else."""
        hooks = self.folder / "hooks"
        hooks.mkdir(exist_ok=True)
        (hooks / "sitecustomize.py").write_text(code, encoding="utf-8")
        return self.environment() | {"PYTHONPATH": f"{hooks}:{ROOT}"} | more

    def at_bind(self, what: str) -> dict[str, str]:
        """An environment in which this happens when the socket is bound: a signal's name, raise, or wait FIFO."""
        return self.with_hook(AT_BIND, AT_BIND=what)

    def command(self, *flags: str) -> list[str]:
        """The command line. Of flags of the same name the last one counts."""
        return [*self.wrapper, *self._command, "serve", "--socket", self.path, "--log-to", self.log_path, *flags]

    def start(self, *flags: str, **options: object) -> Process:
        """Start it in the foreground; both outputs are pipes."""
        return self._start(self.command(*flags), **options)

    def start_in_shell(self, script: str, *flags: str, **options: object) -> Process:
        """Run a shell script in which "$@" is the command; both outputs are pipes, and their end is not waited for."""
        return self._start(["/bin/sh", "-c", script, "sh", *self.command(*flags)], **options)

    def _start(self, command: list[str], **options: object) -> Process:
        settings: dict[str, object] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": self.environment()}
        process: Process = subprocess.Popen(command, **settings | options)  # type: ignore[call-overload]  # noqa: S603 - the daemon under test
        self.started.append(process)
        return process

    def serve(self, *flags: str, **options: object) -> Process:
        """Start it in the foreground, and wait until it says that it serves, also in its log."""
        process = self.start(*flags, **options)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == STARTED, (line, process.communicate(timeout=DEADLINE_S))
        assert self.ask(["ping"]) == [True]
        return process

    def run(self, *flags: str, **options: object) -> Completed:
        """Start it, and wait for what was started and for each process that has its outputs."""
        process = self.start(*flags, **options)
        output, error = process.communicate(timeout=DEADLINE_S)
        return subprocess.CompletedProcess(process.args, process.returncode, output, error)

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

    def configure(self, text: str) -> str:
        """Write the configuration file; its path."""
        self._write_privately(self.config_path, text)
        return self.config_path

    def write_token(self, text: str = f"{TOKEN}\n") -> str:
        """Write the file with the token; its path."""
        path = f"{self.folder}/token"
        self._write_privately(path, text)
        return path

    @staticmethod
    def _write_privately(path: str, text: str) -> None:
        with open(path, "w", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(text)

    # ------------------------------------------------------------------ connections

    def connect(self) -> RawPeer:
        """A connection over the Unix socket; waits while the queue is full. Closed at the end if it is still open."""
        return self.keep(RawPeer.unix(self.path))

    def connect_tcp(self, port: int, host: str = "127.0.0.1") -> RawPeer:
        """A connection to a port of the loopback. Closed at the end if it is still open."""
        return self.keep(RawPeer.tcp(port, host))

    def keep(self, peer: Peer) -> Peer:
        """Close this connection, too, at the end."""
        self._peers.append(peer)
        return peer

    def close_peers(self) -> None:
        """Close the connections that a test has left open."""
        while self._peers:
            self._peers.pop().close()

    def ask(self, *requests: object) -> Any:  # noqa: ANN401 - whatever the daemon replies
        """The replies to one frame on a connection of its own."""
        with RawPeer.unix(self.path) as peer:
            return peer.ask(*requests)

    def status(self) -> dict[str, Any]:
        """What ``kv status`` shows."""
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
        """Wait until a process reads from the FIFO; the writing end, whose closing lets the process go on."""
        writing: list[int] = []

        def is_open() -> bool:
            try:
                writing.append(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
            except OSError:
                return False  # no process reads yet
            return True

        eventually(is_open)
        return writing[0]

    def eventually(self, condition: Callable[[], object]) -> None:
        """Wait until ``condition`` holds."""
        eventually(condition)

    # ------------------------------------------------------------------ looking

    @contextmanager
    def elsewhere(self) -> Iterator[str]:
        """Another directory."""
        with tempfile.TemporaryDirectory(prefix="kvd-") as folder:
            yield folder

    def files(self) -> list[str]:
        """What is in its folder, without the log and what the tests put there."""
        return sorted(set(os.listdir(self.folder)) - {"log", "kvd.toml", "hooks", "fifo", "token"})

    def log(self) -> str:
        """Its log."""
        return pathlib.Path(self.log_path).read_text(encoding="utf-8")

    def log_lines(self) -> list[str]:
        """The lines of its log, without the time."""
        return [line.split(" ", 2)[2] for line in self.log().splitlines()]

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
        """Stop a detached daemon, and wait until its process has ended."""
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        signal.pidfd_send_signal(descriptor, number)
        wait_readable(descriptor)
        os.close(descriptor)

    def clean_up(self) -> None:
        """Close what is still open, and kill what still runs."""
        self.close_peers()
        self._resources.close()
        for process in self.started:
            if process.poll() is None:
                process.kill()
        for pid in processes_of(str(self.folder)):
            self.end(pid, signal.SIGKILL)
        for process in self.started:
            kill(process)
