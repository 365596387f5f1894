"""Start, measure and stop child processes. No other module starts programs."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.errors import BenchError

STOP_S = 20.0
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Child:
    """A program that runs until `stop`. Its output goes to a file."""

    def __init__(self, argv: Sequence[str], log: Path, env: Mapping[str, str], cwd: Path | None = None) -> None:
        self._log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(  # noqa: S603 (only programs named in this package)
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env, cwd=cwd
            )
        self.pid = self._process.pid

    def ended(self) -> bool:
        """Whether the program has ended."""
        return self._process.poll() is not None

    def output(self) -> str:
        """Its output so far."""
        return self._log.read_text(errors="replace")

    def wait_for_output(self, word: str, timeout_s: float) -> None:
        """Wait until the word is in its output. Raises BenchError if the program ends first, or after the timeout."""
        deadline = time.monotonic() + timeout_s
        while word not in self.output():
            if self.ended() or time.monotonic() > deadline:
                raise BenchError(f"process {self.pid} did not print {word!r} but: {self.output()[-800:].strip()}")
            time.sleep(0.01)

    def stop(self) -> None:
        """Send SIGTERM and wait. Kills a program that does not end, and raises BenchError."""
        if self.ended():
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise BenchError(f"process {self.pid} did not end {STOP_S:.0f} s after SIGTERM and was killed") from None

    def rss_bytes(self) -> int:
        """Its resident memory now."""
        pages = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        return int(pages) * _PAGE_BYTES


def pin(pid: int, core: int) -> None:
    """Restrict all threads of a process to one core."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(thread), {core})


def output(argv: Sequence[str], env: Mapping[str, str] | None = None, timeout_s: float = 120) -> str:
    """Run a program and return its standard output. Raises BenchError with its stderr if it fails."""
    try:
        result = subprocess.run(  # noqa: S603 (only programs named in this package)
            argv, capture_output=True, text=True, check=False, env=env, timeout=timeout_s
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchError(f"{' '.join(argv)}: {error}") from error
    if result.returncode != 0:
        raise BenchError(
            f"{' '.join(argv)}: status {result.returncode}: {result.stderr.strip() or result.stdout.strip()}"
        )
    return result.stdout


def together(commands: Sequence[Sequence[str]], env: Mapping[str, str], timeout_s: float = 120) -> list[str]:
    """Start programs one after the other, let all begin together, and return the output of each.

    Each program prints `ready`, waits for a line, works, and prints its result. Raises BenchError if one fails.
    """
    processes: list[subprocess.Popen[str]] = []
    try:
        for argv in commands:
            process = subprocess.Popen(  # noqa: S603 (only programs named in this package)
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
            )
            processes.append(process)
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise BenchError(f"{' '.join(argv)}: {process.communicate(timeout=timeout_s)[1].strip()[-800:]}")
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        results = [process.communicate(timeout=timeout_s) for process in processes]
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"no result: {error}") from error
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for process, (_, errors) in zip(processes, results, strict=True):
        if process.returncode != 0:
            raise BenchError(f"status {process.returncode}: {errors.strip()[-800:]}")
    return [printed for printed, _ in results]


def whole_process_ms(argv: Sequence[str], env: Mapping[str, str], outputs: Mapping[int, Path]) -> float:
    """The wall time of a program from start to end; see `whole_process`."""
    return whole_process(argv, env, outputs)[0]


def whole_process(argv: Sequence[str], env: Mapping[str, str], outputs: Mapping[int, Path]) -> tuple[float, float]:
    """The wall time and the CPU time of a program from start to end, in ms.

    Its descriptors in `outputs` go to files. Raises BenchError if it fails. It is posix_spawn and wait, with nothing
    between: subprocess would add its own milliseconds and noise.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    actions = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
    actions += [(os.POSIX_SPAWN_OPEN, fd, str(path), flags, 0o600) for fd, path in outputs.items()]
    begin = time.perf_counter()
    pid = os.posix_spawn(argv[0], list(argv), dict(env), file_actions=actions, setsigdef=[signal.SIGPIPE])
    _, status, usage = os.wait4(pid, 0)
    took_ms = (time.perf_counter() - begin) * 1000
    if os.waitstatus_to_exitcode(status) != 0:
        raise BenchError(f"{' '.join(argv)}: status {os.waitstatus_to_exitcode(status)}")
    return took_ms, (usage.ru_utime + usage.ru_stime) * 1000


def clean_environment() -> dict[str, str]:
    """Return this environment without the variables that change how kvd or an interpreter starts.

    With PYTHONDONTWRITEBYTECODE, for example, every start compiles every module, and start-up times mean nothing.
    """
    return {name: text for name, text in os.environ.items() if not name.startswith(("KVD_", "PYTHON", "_ARGC"))}
