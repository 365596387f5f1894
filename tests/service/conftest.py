"""What the tests of the process share: a real daemon in a process of its own, and patience with a deadline."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import pytest

from kvd.service.locks import AlreadyRunning, LockFile
from tests.service.real_daemon import RealDaemon

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = pathlib.Path(__file__).with_name("small_daemon.py")
DEADLINE_S = 30
Process = subprocess.Popen[bytes]


def environment(**more: str) -> dict[str, str]:
    """An environment in which the packages of this checkout are found."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8", **more}


def run_python(code: str, *arguments: str, **options: object) -> "subprocess.CompletedProcess[bytes]":
    """Run ``code`` in a process of its own, to the end."""
    command = [sys.executable, "-c", code, *arguments]
    settings: dict[str, object] = {"env": environment(), "capture_output": True, **options}
    return subprocess.run(command, check=False, timeout=DEADLINE_S, **settings)  # type: ignore[call-overload,no-any-return]  # noqa: S603 - our own code


class SmallDaemon:
    """``small_daemon.py`` with a socket of its own."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.path = f"{folder}/s"
        self.lock_path = f"{folder}/s.lock"

    def command(self, *behaviour: str) -> list[str]:
        """How it is started."""
        return [sys.executable, str(SCRIPT), self.path, *behaviour]

    def start(self, *behaviour: str, **options: object) -> Process:
        """Start it; both outputs are pipes."""
        settings: dict[str, object] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen(self.command(*behaviour), env=environment(), **settings)  # type: ignore[call-overload,no-any-return]  # noqa: S603 - our own code

    def run(self, *behaviour: str, **options: object) -> tuple[int, str]:
        """Start it and wait for the process that was started: its exit code, and its stderr to the end."""
        process = self.start(*behaviour, **options)
        _, error = process.communicate(timeout=DEADLINE_S)
        return process.returncode, (error or b"").decode()

    def run_after(self, code: str, *flags: str, behaviour: str = "") -> tuple[int, str]:
        """As ``run``, in an interpreter that has these flags and ran ``code``; waits for whoever has its stderr."""
        code += "; import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
        done = subprocess.run(  # noqa: S603 - our own code
            [sys.executable, *flags, "-c", code, *self.command(behaviour)[1:]],
            env=environment(), capture_output=True, timeout=DEADLINE_S, check=False,
        )  # fmt: skip
        return done.returncode, done.stderr.decode()

    def shell(self, script: str) -> "subprocess.CompletedProcess[bytes]":
        """Run a shell script in which ``$daemon`` is the command."""
        words = " ".join(f"'{word}'" for word in self.command())
        return subprocess.run(  # noqa: S603 - our own words
            ["/bin/sh", "-c", script.replace("$daemon", words)],
            env=environment(), capture_output=True, timeout=DEADLINE_S, check=False,
        )  # fmt: skip

    def ask(self, say: bytes = b"hello") -> int:
        """Connect; the pid that answered, 0 if the connection ended without."""
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(DEADLINE_S)
            asking.connect(self.path)
            asking.sendall(say)
            return int(asking.recv(16) or 0)

    def is_locked(self) -> bool:
        """Whether a process holds the lock."""
        lock = LockFile(self.lock_path)
        try:
            lock.acquire()
        except AlreadyRunning:
            return True
        lock.release()
        return False

    def written_pid(self) -> int:
        """What the lock file says."""
        return int(pathlib.Path(self.lock_path).read_text(encoding="ascii"))

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End the daemon that serves, and wait until it has."""
        pid = self.written_pid()
        # The file may name anybody, the tests' own process too.
        assert os.fsencode(self.path) in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes(), f"{pid} is not ours"
        os.kill(pid, number)
        eventually(lambda: not self.is_locked_by_others())

    def is_locked_by_others(self) -> bool:
        """As ``is_locked``, without a trace: neither makes nor removes the file."""
        if not os.path.exists(self.lock_path):
            return False
        process = run_python("import sys, fcntl; fcntl.flock(open(sys.argv[1]), 6)", self.lock_path)
        return process.returncode != 0


def eventually(condition: Callable[[], object]) -> None:
    """Wait until ``condition`` holds; fail after the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


@pytest.fixture(autouse=True)
def _signals_are_not_ignored() -> Iterator[None]:
    """Whatever started the tests may ignore some (nohup, a job in the background), and that is inherited."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number in before:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(name="python")
def _python() -> "Callable[..., subprocess.CompletedProcess[bytes]]":
    """Runs code in a process of its own: ``python(code, *arguments, **options)``."""
    return run_python


@pytest.fixture(name="eventually")
def _eventually() -> Callable[[Callable[[], object]], None]:
    """Waits until a condition holds."""
    return eventually


@pytest.fixture
def daemon() -> Iterator[SmallDaemon]:
    """A small daemon that does not outlive the test. (In a directory with a short name: socket paths are short.)"""
    with tempfile.TemporaryDirectory() as folder:
        small = SmallDaemon(folder)
        yield small
        if small.is_locked():
            small.kill()


@pytest.fixture
def kvd() -> Iterator[RealDaemon]:
    """A place for a real daemon, which does not outlive the test."""
    with tempfile.TemporaryDirectory(prefix="kvd-", ignore_cleanup_errors=True) as folder:
        real = RealDaemon(folder)
        yield real
        real.clean_up()
