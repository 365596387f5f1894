"""What the client talks to: a real daemon, or a scripted one that does what a real one never should."""

import asyncio
import inspect
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

import kv
from kv.api.methods import Asynchronous, Deferred
from kv.api.result import Result
from kv.wire.codecs import Codec, full, light

ROOT = pathlib.Path(__file__).parents[2]
DEADLINE_S = 30


class Daemon:
    """A daemon in the foreground, ready when this returns."""

    def __init__(self, folder: str, *flags: str, **variables: str) -> None:
        self.address = f"{folder}/kvd.sock"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("KVD_")}
        self.process = subprocess.Popen(  # noqa: S603 (the command under test)
            [sys.executable, "-m", "kv", "serve", "--socket", self.address, *flags],
            env=clean | {"PYTHONPATH": str(ROOT), "HOME": folder, "XDG_CONFIG_HOME": folder} | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert self.process.stdout is not None
        said = b""
        for line in self.process.stdout:
            said += line
            if b"Kvd started" in line:
                return
        raise AssertionError(f"the daemon did not start: {said.decode()}")

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=DEADLINE_S)


@pytest.fixture(scope="module")
def shared_daemon() -> Iterator[Daemon]:
    """One daemon for all tests of a module."""
    with tempfile.TemporaryDirectory() as folder:
        daemon = Daemon(folder)
        yield daemon
        daemon.end()


@pytest.fixture
def start_daemon() -> Iterator[Callable[..., Daemon]]:
    """Starts daemons of the test's own."""
    started: list[Daemon] = []
    with tempfile.TemporaryDirectory() as folder:

        def start(*flags: str, **variables: str) -> Daemon:
            started.append(Daemon(folder, *flags, **variables))
            return started[-1]

        yield start
        for daemon in started:
            daemon.end()


@pytest.fixture(params=["full", "light"])
def codec(request: pytest.FixtureRequest) -> Codec:
    """Each of the two codecs."""
    return {"full": full, "light": light}[request.param]()


@pytest.fixture
def db(shared_daemon: Daemon, codec: Codec) -> Iterator[kv.Client]:
    """A client of an empty daemon, with each codec."""
    with kv.connect(shared_daemon.address, codec=codec, timeout=DEADLINE_S) as client:
        client.delete(*[item.key for item in client.scan(keys_only=True)])
        yield client


class Line:
    """The server's end of one connection of a scripted server."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        connected.settimeout(DEADLINE_S)

    def request(self, store_id: str = "store") -> list[Any] | None:
        """The next frame's requests; None at the end. A hello, in a frame of its own, is answered and not shown."""
        while (head := self._exactly(4)) is not None:
            requests: list[Any] = msgspec.msgpack.decode(self._exactly(int.from_bytes(head, "big")) or b"")
            if requests[0][0] != "hello" or len(requests[0]) < 3:
                return requests
            self.reply([1, "0", store_id, 5, {}])
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
        """A frame of whatever bytes."""
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

    def end(self) -> None:
        self.release.set()
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for line in self._lines:  # a script may still wait for a client that nobody has closed
            _hang_up(line)
        for thread in self._threads:
            thread.join(DEADLINE_S)
        assert not self.failures, self.failures


def _hang_up(connected: socket.socket) -> None:
    try:
        connected.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # closed already


@pytest.fixture
def scripted() -> Iterator[Callable[..., ScriptedServer]]:
    """Starts scripted servers; a script that fails fails the test."""
    started: list[ScriptedServer] = []
    with tempfile.TemporaryDirectory() as folder:

        def start(*scripts: Callable[[Line], object]) -> ScriptedServer:
            started.append(ScriptedServer(folder, *scripts))
            return started[-1]

        yield start
        for server in started:
            server.end()


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        """Call ``function`` inside the loop; what it, or its awaiting, returns."""

        async def call() -> Any:  # noqa: ANN401
            result = function(*arguments, **named)
            return await result if inspect.isawaitable(result) else result

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(DEADLINE_S)

    def end(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(DEADLINE_S)
        self.loop.close()


class Awaited:
    """Something of the asyncio client, used as that of the blocking one: the same tests are for both."""

    def __init__(self, loop: Loop, thing: Any) -> None:  # noqa: ANN401
        self._loop = loop
        self._thing = thing

    def _seen(self, thing: Any) -> Any:  # noqa: ANN401
        if hasattr(thing, "__anext__") and not hasattr(thing, "wait"):
            return self._items(thing)
        return Awaited(self._loop, thing) if isinstance(thing, Asynchronous | Deferred | Result) else thing

    def _items(self, iterator: Any) -> Iterator[Any]:  # noqa: ANN401
        while (item := self._loop.run(lambda: anext(iterator, self))) is not self:
            yield item

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        found = self._loop.run(getattr, self._thing, name)
        if not callable(found):
            return found
        if name == "run":
            return lambda function, **named: self._loop.run(found, self._function(function), **named)
        return lambda *arguments, **named: self._seen(self._loop.run(found, *arguments, **named))

    def _function(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """A function of a program that blocks, in a thread."""
        return lambda txn: asyncio.to_thread(function, self._seen(txn))

    def __enter__(self) -> Any:  # noqa: ANN401
        return self._seen(self._loop.run(self._thing.__aenter__))

    def __exit__(self, *error: Any) -> None:  # noqa: ANN401
        self._loop.run(self._thing.__aexit__, *error)

    def __iter__(self) -> Iterator[Any]:
        return self._items(self._thing)


@pytest.fixture(scope="session")
def loop() -> Iterator[Loop]:
    """An event loop for all asyncio clients."""
    running = Loop()
    yield running
    running.end()


@pytest.fixture(params=["blocking", "asyncio"])
def open_client(request: pytest.FixtureRequest, loop: Loop) -> Iterator[Callable[..., kv.Client]]:
    """Opens clients of one kind or the other, to be used as if they all blocked."""
    opened: list[Any] = []

    def connect(address: str, **settings: Any) -> Any:  # noqa: ANN401
        make = kv.connect if request.param == "blocking" else lambda *a, **n: Awaited(loop, kv.aio.connect(*a, **n))
        opened.append(make(address, **{"timeout": DEADLINE_S, **settings}))
        return opened[-1]

    yield connect
    for client in opened:
        client.close()


@pytest.fixture
def either(open_client: Callable[..., kv.Client], shared_daemon: Daemon) -> kv.Client:
    """A client of one kind or the other, of an empty daemon."""
    client = open_client(shared_daemon.address)
    client.delete(*[item.key for item in client.scan(keys_only=True)], missing_ok=True)
    return client
