"""What the tests of the command line share: the command, and daemons for it."""

import pathlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.harness.daemon import Daemon, new_folders
from tests.harness.kv_command import Kv
from tests.harness.processes import Process

Serving = Callable[..., tuple[Kv, Process]]


@pytest.fixture
def serving() -> Iterator[Serving]:
    """Starts a daemon with these flags: ``kv`` for it, and its process. One beside others has another socket."""
    daemons: list[Daemon] = []
    with new_folders() as new_folder, ExitStack() as stack:

        def start(*flags: str) -> tuple[Kv, Process]:
            is_beside_others = any(daemon.process.poll() is None for daemon in daemons)
            folder = new_folder() if is_beside_others or not daemons else daemons[0].folder
            daemons.append(stack.enter_context(Daemon(folder, "", *flags)))
            stack.callback(daemons[-1].terminate)
            return daemons[-1].kv, daemons[-1].process

        yield start


@pytest.fixture
def kv(serving: Serving) -> Kv:
    """``kv`` with an empty daemon of the test's own."""
    return serving()[0]


@pytest.fixture(scope="module")
def shared_kv() -> Iterator[Kv]:
    """``kv`` with one daemon for all tests of the module."""
    with new_folders() as new_folder, Daemon(new_folder()) as daemon:
        yield daemon.kv
        daemon.terminate()


@pytest.fixture
def alone(tmp_path: pathlib.Path) -> Kv:
    """``kv`` where no daemon runs."""
    return Kv(str(tmp_path / "nobody.sock"))
