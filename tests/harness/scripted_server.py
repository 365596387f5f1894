"""A server that does what a script says, also what a real daemon never does."""

import socket
import threading
from collections.abc import Callable
from typing import Any, Self

import msgspec

from tests.harness.waiting import DEADLINE_S


class Line:
    """The server's end of one connection of a scripted server."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        connected.settimeout(DEADLINE_S)

    def request(self, store_id: str = "store", version: int = 5) -> list[Any] | None:
        """The next frame's requests; None at the end. A hello is answered and not shown."""
        while (head := self._exactly(4)) is not None:
            requests: list[Any] = msgspec.msgpack.decode(self._exactly(int.from_bytes(head, "big")) or b"")
            if requests[0][0] != "hello" or len(requests[0]) < 3:
                return requests
            no_table = [{"error": "busy", "message": "no table"}] if requests[1:] == [["attach"]] else []
            self.reply([1, "0", store_id, version, {}], *no_table)
        return None

    def _exactly(self, size: int) -> bytes | None:
        data = b""
        while len(data) < size:
            try:
                more = self.socket.recv(size - len(data))
            except ConnectionResetError:
                more = b""
            if not more:
                return None
            data += more
        return data

    def reply(self, *replies: object) -> None:
        """Answer a frame."""
        self.payload(msgspec.msgpack.encode(replies))

    def goodbye(self, code: str = "shutting_down") -> None:
        """A map as the last frame."""
        self.payload(msgspec.msgpack.encode({"error": code, "message": "the server is stopping"}))

    def payload(self, payload: bytes) -> None:
        """A frame of any bytes."""
        self.socket.sendall(len(payload).to_bytes(4, "big") + payload)


class ScriptedServer:
    """A server whose n-th connection is handled by the n-th of its scripts (the last one for all others)."""

    def __init__(self, folder: str, *scripts: Callable[[Line], object]) -> None:
        self.address = f"{folder}/scripted.sock"
        self.connections = 0
        self.failures: list[BaseException] = []
        self.release = threading.Event()
        self._scripts = scripts
        self._lines: list[socket.socket] = []
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(self.address)
        self._listening.listen()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                connected, _ = self._listening.accept()
            except OSError:
                return
            script = self._scripts[min(self.connections, len(self._scripts) - 1)]
            self.connections += 1
            self._lines.append(connected)
            self._threads.append(threading.Thread(target=self._run, args=(script, connected), daemon=True))
            self._threads[-1].start()

    def _run(self, script: Callable[[Line], object], connected: socket.socket) -> None:
        try:
            script(Line(connected))
        except BrokenPipeError:
            pass  # the client has seen enough
        except BaseException as error:
            self.failures.append(error)
        finally:
            _hang_up(connected)
            connected.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Close every connection, and see that no script has failed."""
        self.release.set()
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for line in self._lines:  # a script may still wait for a client that no test has closed
            _hang_up(line)
        for thread in self._threads:
            thread.join(DEADLINE_S)
        assert not self.failures, self.failures


def _hang_up(connected: socket.socket) -> None:
    try:
        connected.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # closed already
