"""What the tests of the process share: a place for a real daemon, and a small daemon made of the same parts."""

import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.harness.daemon import new_folders
from tests.harness.processes import run_python
from tests.harness.real_daemon import RealDaemon
from tests.harness.small_daemon import SmallDaemon
from tests.harness.waiting import eventually


@pytest.fixture(autouse=True)
def _signals_are_not_ignored() -> Iterator[None]:
    """A process inherits which signals are ignored, and what started the tests may ignore some (nohup, a shell's &)."""
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
    """A small daemon that does not outlive the test."""
    with new_folders() as new_folder, SmallDaemon(str(new_folder())) as small:
        yield small


@pytest.fixture
def kvd() -> Iterator[RealDaemon]:
    """A place for a real daemon, which does not outlive the test."""
    with new_folders() as new_folder, RealDaemon(new_folder()) as real:
        yield real
