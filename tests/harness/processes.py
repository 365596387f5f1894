"""Processes that the tests start: their environment, their end, and how the tests find them."""

import os
import pathlib
import select
import subprocess
import sys

from tests.harness.waiting import DEADLINE_S

ROOT = pathlib.Path(__file__).parents[2]
KV = [sys.executable, "-m", "kv"]
Process = subprocess.Popen[bytes]
Completed = subprocess.CompletedProcess[bytes]

# Variables of the person or the service manager that runs the tests: none of them may change what a daemon does.
_NOT_INHERITED = (
    "KVD_",
    "XDG_",
    "LISTEN_",
    "NOTIFY_",
    "WATCHDOG_",
    "JOURNAL_",
    "INVOCATION_",
    "PYTHONUNBUFFERED",
    "_ARGCOMPLETE",
)


def environment(**more: str) -> dict[str, str]:
    """An environment with the packages of this checkout, and with no kvd or service manager of the person's own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)}
    return {**kept, "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8", **more}


def spawn(*command: str | bytes, **options: object) -> Process:
    """Start a command in the checkout; it inherits the outputs of the tests unless ``options`` say otherwise."""
    settings: dict[str, object] = {"env": environment(), "cwd": ROOT, **options}
    return subprocess.Popen(command, **settings)  # type: ignore[call-overload,no-any-return]  # noqa: S603 - our own command


def spawn_module(module: str, *words: str | bytes, **options: object) -> Process:
    """Start one of the checkout's modules."""
    return spawn(sys.executable, "-m", module, *words, **options)


def run_python(code: str, *arguments: str, **options: object) -> Completed:
    """Run ``code`` in an interpreter of its own, to its end."""
    settings: dict[str, object] = {"env": environment(), "capture_output": True, **options}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, check=False, timeout=DEADLINE_S, **settings)  # type: ignore[call-overload,no-any-return]  # noqa: S603 - our own code


def kill(process: Process) -> None:
    """Kill a process unless it has ended, wait for its end, and close its pipes."""
    process.kill()
    process.wait(DEADLINE_S)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def processes_of(folder: str) -> list[int]:
    """The processes that were started with ``folder`` as HOME, which no other process has.

    A lock file is not asked: it may hold any process id, that of the tests too.
    """
    mark = b"\0" + os.fsencode(f"HOME={folder}") + b"\0"
    pids = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                variables = pathlib.Path("/proc", entry, "environ").read_bytes()
            except OSError:
                continue  # it has ended, or is another user's
            if mark in b"\0" + variables:
                pids.append(int(entry))
    return pids


def wait_readable(descriptor: int) -> None:
    """Wait until there is something to read, or until the process of a pidfd has ended."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    assert poll.poll(DEADLINE_S * 1000), "waited in vain"
