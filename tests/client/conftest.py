"""The servers of the client's tests: a real daemon, and a scripted server that does what a real one never does."""

import asyncio
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

import kv
from kv.aio.mirror import AsyncMirror
from kv.api.result import Result
from kv.methods import Asynchronous, Deferred
from kv.wire.codecs import Codec, full, light
from tests.harness.daemon import Daemon, new_folders
from tests.harness.scripted_server import ScriptedServer
from tests.harness.waiting import DEADLINE_S


@pytest.fixture(scope="module")
def shared_daemon() -> Iterator[Daemon]:
    """One daemon for all tests of a module."""
    with new_folders() as new_folder, Daemon(new_folder()) as daemon:
        yield daemon
        daemon.terminate()


@pytest.fixture
def start_daemon() -> Iterator[Callable[..., Daemon]]:
    """Starts daemons for one test, each at the address of the previous one."""
    with new_folders() as new_folder, ExitStack() as daemons:
        folder = new_folder()

        def start(*flags: str, **variables: str) -> Daemon:
            daemon = daemons.enter_context(Daemon(folder, "", *flags, variables=variables))
            daemons.callback(daemon.terminate)
            return daemon

        yield start


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


@pytest.fixture
def scripted() -> Iterator[Callable[..., ScriptedServer]]:
    """Starts scripted servers; a script that fails fails the test."""
    with new_folders() as new_folder, ExitStack() as servers:
        yield lambda *scripts: servers.enter_context(ScriptedServer(str(new_folder()), *scripts))


@pytest.fixture
def connect() -> Iterator[Callable[..., kv.Client]]:
    """Opens blocking clients, and closes them after the test."""
    with ExitStack() as clients:
        yield lambda *arguments, **settings: clients.enter_context(kv.connect(*arguments, **settings))


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        """Call ``function`` inside the loop, and await its result if it can be awaited; return the result."""

        async def call() -> Any:  # noqa: ANN401
            result = function(*arguments, **named)
            return await result if inspect.isawaitable(result) else result

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(DEADLINE_S)

    def end(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(DEADLINE_S)
        self.loop.close()


class Awaited:
    """An object of the asyncio client, used like one of the blocking client: the same tests are for both."""

    def __init__(self, loop: Loop, thing: Any) -> None:  # noqa: ANN401
        self._loop = loop
        self._thing = thing

    def _wrapped(self, thing: Any) -> Any:  # noqa: ANN401
        if hasattr(thing, "__anext__") and not hasattr(thing, "wait"):
            return self._items(thing)
        return (
            Awaited(self._loop, thing) if isinstance(thing, Asynchronous | Deferred | Result | AsyncMirror) else thing
        )

    def _items(self, iterator: Any) -> Iterator[Any]:  # noqa: ANN401
        while (item := self._loop.run(lambda: anext(iterator, self))) is not self:
            yield item

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        attribute = self._loop.run(getattr, self._thing, name)
        if not callable(attribute):
            return attribute
        if name == "run":
            return lambda function, **named: self._loop.run(attribute, self._function(function), **named)
        return lambda *arguments, **named: self._wrapped(self._loop.run(attribute, *arguments, **named))

    def _function(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Run a blocking function in a thread, so that it can be awaited."""
        return lambda txn: asyncio.to_thread(function, self._wrapped(txn))

    def __enter__(self) -> Any:  # noqa: ANN401
        return self._wrapped(self._loop.run(self._thing.__aenter__))

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
    """Opens clients of either kind, to be used as if they all blocked."""
    opened: list[Any] = []

    def connect(address: str, **settings: Any) -> Any:  # noqa: ANN401
        settings = {"timeout": DEADLINE_S, **settings}
        is_blocking = request.param == "blocking"
        opened.append(
            kv.connect(address, **settings) if is_blocking else Awaited(loop, kv.aio.connect(address, **settings))
        )
        return opened[-1]

    yield connect
    for client in opened:
        client.close()


@pytest.fixture
def either(open_client: Callable[..., kv.Client], shared_daemon: Daemon) -> kv.Client:
    """A client of either kind, of an empty daemon."""
    client = open_client(shared_daemon.address)
    client.delete(*[item.key for item in client.scan(keys_only=True)], missing_ok=True)
    return client
