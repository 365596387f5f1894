"""A real daemon, as small as it can be: started as `python small_daemon.py SOCKET [BEHAVIOUR [ARGUMENT]]`.

It answers who says something with its pid, and stops at SIGTERM. BEHAVIOUR is what it does instead of becoming ready,
or besides: see ``BEFORE_READY``; at-once, crash and unconfirmed are elsewhere.
"""

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable

from kvd.service.daemon import ReadyPipe, daemonize, ensure_standard_fds
from kvd.service.errors import StartError
from kvd.service.locks import LockFile
from kvd.service.unix_socket import bind_unix_socket, remove_socket, socket_inode


class Stop(Exception):
    """SIGTERM came."""


class WaitingLock(LockFile):
    """A lock whose holder waits at a FIFO before it lets go."""

    def __init__(self, path: str, fifo: str) -> None:
        super().__init__(path)
        self._fifo = fifo

    def release(self) -> None:
        if self._descriptor is not None:
            wait_at_fifo(self._fifo)
        super().release()


def main(path: str, behaviour: str = "", argument: str = "") -> int:
    ensure_standard_fds()
    if behaviour == "at-once":
        os.read(0, 1)  # returns in all of them when the test closes the pipe
    lock = WaitingLock(path + ".lock", argument) if behaviour == "slow-release" else LockFile(path + ".lock")
    preserve = [log_to(argument)] if behaviour == "crash" else []
    try:
        lock.acquire()
        return daemonize(
            lambda pipe: run(pipe, path, behaviour, argument),
            lock=lock,
            preserve=preserve,
            confirm=lambda: confirm(path, behaviour),
        )
    except StartError as error:
        print(f"kv: error: {error.text}", file=sys.stderr)
        return error.exit_code
    finally:
        lock.release()


def run(pipe: ReadyPipe, path: str, behaviour: str, argument: str) -> int:
    if behaviour in BEFORE_READY:
        BEFORE_READY[behaviour](argument)
    signal.signal(signal.SIGTERM, stop)
    listening = bind_unix_socket(path, 0o600, "")
    inode = socket_inode(path) or (0, 0)
    listening.setblocking(True)
    try:
        pipe.send_ready()
        serve(listening, behaviour)
    except Stop:
        return 0
    finally:
        remove_socket(path, inode)
    return 0


def stop(*_: object) -> None:
    raise Stop


def serve(listening: socket.socket, behaviour: str) -> None:
    while True:
        connection, _ = listening.accept()
        with connection:
            asked = connection.recv(5)
            if behaviour == "crash" and asked == b"crash":
                raise RuntimeError("crashed while serving")
            if asked:
                connection.sendall(str(os.getpid()).encode())


def confirm(path: str, behaviour: str) -> None:
    if behaviour == "unconfirmed":
        raise StartError(1, "it does not answer")
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(path)
        asking.sendall(b"hello")
        if not asking.recv(16):
            raise StartError(1, "it does not answer")


def log_to(path: str) -> int:
    stream = open(path, "a", encoding="utf-8")  # noqa: SIM115 - as long as the process
    logging.getLogger().addHandler(logging.StreamHandler(stream))
    return stream.fileno()


def wait_at_fifo(path: str) -> None:
    """Until somebody opens the FIFO for writing and closes it."""
    with open(path, "rb") as fifo:
        fifo.read()


def fail(text: str) -> None:
    raise StartError(74, os.fsdecode(b"no disk \xff\nof my own: ") + text)


def crash(_: str) -> None:
    raise ValueError("not a daemon's day")


BEFORE_READY: dict[str, Callable[[str], object]] = {
    "exception": crash,
    "exit": lambda _: sys.exit(0),
    "start-error": fail,
    "slow-release": fail,
    "sigkill": lambda _: os.kill(os.getpid(), signal.SIGKILL),
    "segv": lambda _: os.kill(os.getpid(), signal.SIGSEGV),
    "wait": wait_at_fifo,
}

if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
