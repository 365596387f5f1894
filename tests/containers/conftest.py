"""What the tests of containers share: a daemon as the first process of a namespace, with a writable place."""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[2]
DEADLINE_S = 30
KV = [sys.executable, "-m", "kv"]
# As a container gives it: no HOME, no name of a user.
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"}


def require(*programs: str) -> None:
    """Skip the test where a program or root's rights are missing; fail it in CI, where neither may be."""
    missing = [program for program in programs if shutil.which(program, path=ENVIRONMENT["PATH"]) is None]
    missing += [] if os.geteuid() == 0 else ["root's rights"]
    if missing and "CI" not in os.environ:
        pytest.skip(f"needs {', '.join(missing)}")
    assert not missing


class Contained:
    """``kv serve`` started by ``wrapper``, which gives it namespaces, as the only process in them."""

    def __init__(self, folder: str, wrapper: list[str], *arguments: str) -> None:
        self.folder = folder
        self.environment = ENVIRONMENT | {"KVD_SOCKET": f"{folder}/run/kvd.sock"}
        self.wrapper = subprocess.Popen(  # noqa: S603 - the daemon under test
            [*wrapper, *KV, "serve", *arguments], env=self.environment, cwd="/",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert self.wrapper.stdout is not None
        self.said = ""
        for line in self.wrapper.stdout:
            self.said += line
            if line == "Kvd started. Press ctrl-c to stop.\n":
                return
        raise AssertionError(f"the daemon did not start: {self.said}")

    @property
    def pid(self) -> int:
        """The daemon's own id, as it is outside: what was started runs it as its only child, or is it."""
        return int((children(self.wrapper.pid) or [self.wrapper.pid])[0])

    def kv(self, *arguments: str, wrapper: tuple[str, ...] = ()) -> str:
        """What a command says; it must succeed."""
        done = subprocess.run(  # noqa: S603 - the command under test
            [*wrapper, *KV, *arguments], env=self.environment, cwd="/", capture_output=True, text=True,
            timeout=DEADLINE_S, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def end(self) -> tuple[int, str]:
        """Wait for the end; the status, and all that was said."""
        rest, _ = self.wrapper.communicate(timeout=DEADLINE_S)
        return self.wrapper.returncode, self.said + rest


def children(pid: int) -> list[str]:
    """The ids of a process's children, also of those that only wait to be asked for their status."""
    return pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


Contain = Callable[..., Contained]


@pytest.fixture
def contain() -> Iterator[Contain]:
    """Starts a daemon by a command, with ``run`` and ``data`` in a folder where everybody may write."""
    started: list[Contained] = []
    with tempfile.TemporaryDirectory(prefix="kvd-") as folder:
        pathlib.Path(folder).chmod(0o755)
        for name in ("run", "data"):
            pathlib.Path(folder, name).mkdir()
            pathlib.Path(folder, name).chmod(0o1777)

        def start(wrapper: list[str], *arguments: str) -> Contained:
            wrapper = [word.replace("{folder}", folder) for word in wrapper]
            started.append(Contained(folder, wrapper, *(word.replace("{folder}", folder) for word in arguments)))
            return started[-1]

        yield start
        for one in started:
            if one.wrapper.poll() is None:
                os.kill(one.pid, 9)
                one.wrapper.communicate(timeout=DEADLINE_S)
