"""A daemon that serves from its construction to its end, and may be killed and started again in between."""

import os
import pathlib
import re
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count

import kv
from tests.harness.processes import KV, Process
from tests.harness.raw_peer import KIB
from tests.harness.real_daemon import STARTED, RealDaemon
from tests.harness.waiting import DEADLINE_S


class Daemon(RealDaemon):
    """`kv serve` in the foreground, ready when the constructor returns. Its log is what it writes on stderr."""

    def __init__(
        self,
        folder: str | pathlib.Path,
        configuration: str = "",
        *flags: str,
        command: Sequence[str] = tuple(KV),
        variables: dict[str, str] | None = None,
    ) -> None:
        super().__init__(folder, command=command, variables=variables)
        self._flags = ("--config", self.configure(configuration), *flags)
        self.process: Process
        self._exit_code = 0  # with which it is to end
        try:
            self.serve()
        except BaseException:
            self.clean_up()
            raise

    def command(self, *flags: str) -> list[str]:
        """The command line."""
        return [*self.wrapper, *self._command, "serve", "--socket", self.path, *self._flags, *flags]

    def start(self, *flags: str, **options: object) -> Process:
        """Start it; its stdout is a pipe."""
        with open(self.log_path, "ab") as log:
            return super().start(*flags, stderr=log, **options)

    def serve(self, *flags: str, **options: object) -> Process:
        """Start it, and wait until it says that it serves."""
        logged = len(self.log()) if os.path.exists(self.log_path) else 0
        process = self.process = self.start(*flags, **options)
        self._exit_code = 0
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == STARTED, f"the daemon did not start: {line!r} {self.log()[logged:]}"
        return process

    # ------------------------------------------------------------------ looking

    @property
    def version(self) -> int:
        """The store's newest version."""
        [[_, _, _, version, _]] = self.ask(["hello", 1, "test"])
        return int(version)

    def client(self) -> kv.Client:
        """A client that caches nothing."""
        return kv.connect(self.path, timeout=DEADLINE_S)

    def descriptors(self) -> int:
        """How many descriptors its process has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def rss(self) -> int:
        """Its resident memory in bytes."""
        return self._memory("VmRSS")

    def peak_from_here(self) -> Callable[[], int]:
        """Begin to measure; returns a function for the highest growth of the resident memory since then."""
        pathlib.Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        before = self.rss()
        return lambda: self._memory("VmHWM") - before

    def _memory(self, name: str) -> int:
        text = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        line = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
        assert line is not None
        return int(line[1]) * KIB

    # ------------------------------------------------------------------ faults and the end

    @contextmanager
    def held_still(self) -> Iterator[None]:
        """Stop the process (SIGSTOP) meanwhile."""
        os.kill(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.process.pid, signal.SIGCONT)

    def terminate(self, number: int = signal.SIGTERM) -> int:
        """Send a signal that ends it, unless it has ended; its exit code."""
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)

    def kill(self) -> None:
        """kill -9."""
        assert self.terminate(signal.SIGKILL) == -signal.SIGKILL
        self._exit_code = -signal.SIGKILL

    def restart(self) -> None:
        """kill -9, and a new one in its place."""
        self.kill()
        self.serve()

    def see_it_end(self) -> None:
        """Stop it unless it has ended; it must have served without an error, and end with 0 unless it was killed."""
        try:
            assert self.terminate() == self._exit_code, self.log()
            assert "ERROR" not in self.log(), self.log()
            assert "Traceback" not in self.log(), self.log()
        finally:
            self.clean_up()


def see_all_end(daemons: Iterable[Daemon]) -> None:
    """Stop them all; each must have served without an error."""
    errors = []
    for daemon in daemons:
        try:
            daemon.see_it_end()
        except (AssertionError, OSError, EOFError, subprocess.TimeoutExpired) as error:
            errors.append(f"{error!r}\n{daemon.log()}")
    assert not errors, "\n".join(errors)


@contextmanager
def new_folders() -> Iterator[Callable[[], pathlib.Path]]:
    """Makes folders with short names, as the paths of sockets are short; they are removed at the end.

    They are for their owner alone; a test that lets other users in has to change nothing but the folder itself.
    """
    numbers = count()
    with tempfile.TemporaryDirectory(prefix="kvd-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o711)  # noqa: S103 - what is in it is for its owner alone

        def new() -> pathlib.Path:
            place = pathlib.Path(folder, str(next(numbers)))
            place.mkdir(0o700)
            return place

        yield new
