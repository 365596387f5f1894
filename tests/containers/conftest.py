"""What the tests of containers share: a daemon as the first process of a namespace, with a writable place."""

import os
import pathlib
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.harness.daemon import new_folders
from tests.harness.processes import KV, ROOT
from tests.harness.programs import PATH
from tests.harness.real_daemon import STARTED
from tests.harness.waiting import DEADLINE_S

# As a container gives it: no HOME, no name of a user.
ENVIRONMENT = {"PATH": PATH, "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"}


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
            if line == STARTED.decode():
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

    def kill(self) -> None:
        """kill -9, unless it has ended."""
        if self.wrapper.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wrapper.communicate(timeout=DEADLINE_S)


def children(pid: int) -> list[str]:
    """The ids of a process's children, also of those that only wait to be asked for their status."""
    return pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


Contain = Callable[..., Contained]


@pytest.fixture
def contain() -> Iterator[Contain]:
    """Starts a daemon by a command, with ``run`` and ``data`` in a folder where every user may write."""
    started: list[Contained] = []
    with new_folders() as new_folder:
        folder = new_folder()
        folder.chmod(0o755)
        for name in ("run", "data"):
            (folder / name).mkdir()
            (folder / name).chmod(0o1777)

        def start(wrapper: list[str], *arguments: str) -> Contained:
            wrapper = [word.replace("{folder}", str(folder)) for word in wrapper]
            words = [word.replace("{folder}", str(folder)) for word in arguments]
            started.append(Contained(str(folder), wrapper, *words))
            return started[-1]

        yield start
        for one in started:
            one.kill()
