"""Children: started, measured, stopped. The one module that starts programs."""

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
    """A program that runs until `stop`; what it writes goes to a file."""

    def __init__(self, argv: Sequence[str], log: Path, env: Mapping[str, str], cwd: Path | None = None) -> None:
        self._log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(  # noqa: S603 (only programs named in this package)
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env, cwd=cwd
            )
        self.pid = self._process.pid

    def ended(self) -> bool:
        """Whether it is gone."""
        return self._process.poll() is not None

    def said(self) -> str:
        """What it has written so far."""
        return self._log.read_text(errors="replace")

    def wait_until_it_says(self, word: str, patience_s: float) -> None:
        """Return when the word is in what it wrote. Raises BenchError if it ends first, or in time does not."""
        deadline = time.monotonic() + patience_s
        while word not in self.said():
            if self.ended() or time.monotonic() > deadline:
                raise BenchError(f"process {self.pid} did not say {word!r}; it wrote: {self.said()[-800:].strip()}")
            time.sleep(0.01)

    def stop(self) -> None:
        """SIGTERM and wait. A program that stays is killed and reported."""
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
        """Memory resident now."""
        pages = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        return int(pages) * _PAGE_BYTES


def pin(pid: int, core: int) -> None:
    """Keep all threads of a process on one core."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(thread), {core})


def output(argv: Sequence[str], env: Mapping[str, str] | None = None, timeout_s: float = 120) -> str:
    """What a program prints. Raises BenchError with its stderr if it fails."""
    try:
        done = subprocess.run(  # noqa: S603 (only programs named in this package)
            argv, capture_output=True, text=True, check=False, env=env, timeout=timeout_s
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchError(f"{' '.join(argv)}: {error}") from error
    if done.returncode != 0:
        raise BenchError(f"{' '.join(argv)}: status {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def together(commands: Sequence[Sequence[str]], env: Mapping[str, str], timeout_s: float = 120) -> list[str]:
    """Start programs, one when the one before it is ready, and let all begin at once; what each printed then.

    Each says `ready`, waits for a line, works, and prints its result. Raises BenchError if one fails.
    """
    started: list[subprocess.Popen[str]] = []
    try:
        for argv in commands:
            process = subprocess.Popen(  # noqa: S603 (only programs named in this package)
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
            )
            started.append(process)
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise BenchError(f"{' '.join(argv)}: {process.communicate(timeout=timeout_s)[1].strip()[-800:]}")
        for process in started:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        results = [process.communicate(timeout=timeout_s) for process in started]
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"no result: {error}") from error
    finally:
        for process in started:
            process.kill()
            process.wait()
    for process, (_, errors) in zip(started, results, strict=True):
        if process.returncode != 0:
            raise BenchError(f"status {process.returncode}: {errors.strip()[-800:]}")
    return [said for said, _ in results]


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
    """This environment, without what would change how kvd or an interpreter starts.

    PYTHONDONTWRITEBYTECODE in particular makes every start compile every module: start-up times would mean nothing.
    """
    return {name: text for name, text in os.environ.items() if not name.startswith(("KVD_", "PYTHON", "_ARGC"))}
