"""How the tests start the smallest daemon there is: ``tests/service/small_daemon.py``, of the service's own parts."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
from typing import Self

from kvd.service.locks import AlreadyRunning, LockFile
from tests.harness.processes import ROOT, Process, environment, run_python, spawn
from tests.harness.waiting import DEADLINE_S, eventually

SCRIPT = ROOT / "tests/service/small_daemon.py"


class SmallDaemon:
    """``small_daemon.py`` with a socket of its own."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.path = f"{folder}/s"
        self.lock_path = f"{folder}/s.lock"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_locked():
            self.kill()

    def command(self, *behaviour: str) -> list[str]:
        """How it is started."""
        return [sys.executable, str(SCRIPT), self.path, *behaviour]

    def start(self, *behaviour: str, **options: object) -> Process:
        """Start it; both outputs are pipes."""
        return spawn(*self.command(*behaviour), **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options)

    def run(self, *behaviour: str, **options: object) -> tuple[int, str]:
        """Start it and wait for the process that was started: its exit code, and its stderr to the end."""
        process = self.start(*behaviour, **options)
        _, error = process.communicate(timeout=DEADLINE_S)
        return process.returncode, (error or b"").decode()

    def run_after(self, code: str, *flags: str, behaviour: str = "") -> tuple[int, str]:
        """As ``run``, in an interpreter that has these flags and ran ``code``; waits until its stderr is closed."""
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
        # The file may name any process, also the one that runs the tests.
        assert os.fsencode(self.path) in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes(), f"{pid} is not ours"
        os.kill(pid, number)
        eventually(lambda: not self.is_locked_by_others())

    def is_locked_by_others(self) -> bool:
        """As ``is_locked``, without a trace: neither makes nor removes the file."""
        if not os.path.exists(self.lock_path):
            return False
        process = run_python("import sys, fcntl; fcntl.flock(open(sys.argv[1]), 6)", self.lock_path)
        return process.returncode != 0
