"""The asyncio client: what it puts into a frame, cancellation, deadlines, and reconnecting."""

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

import kv
from kv.aio import AsyncClient
from tests.harness.scale import SCALE
from tests.harness.waiting import DEADLINE_S

if TYPE_CHECKING:
    from tests.harness.daemon import Daemon
    from tests.harness.scripted_server import Line, ScriptedServer

    Scripted = Callable[..., ScriptedServer]
CANCELLATIONS = int(100_000 * max(1.0, SCALE))
SHORT_S = 0.2


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Runs a coroutine function on each of the event loops."""
    new_loop = asyncio.new_event_loop if request.param == "asyncio" else uvloop.new_event_loop

    def run(main: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:  # noqa: ANN401
        async def within_time() -> Any:  # noqa: ANN401
            async with asyncio.timeout(10 * DEADLINE_S):
                return await main(*arguments)

        with asyncio.Runner(loop_factory=new_loop) as runner:
            return runner.run(within_time())

    return run


def echo(frames: list[list[Any]]) -> Callable[["Line"], None]:
    """Return a script that notes frames, and answers a get with its key."""

    def script(line: "Line") -> None:
        for requests in iter(line.request, None):
            frames.append(requests)
            line.reply(*(request[1].encode() if request[0] == "get" else 7 for request in requests))

    return script


# ---------------------------------------------------------------------- frames


def test_calls_of_one_turn_share_a_frame(run: Callable[..., Any], scripted: "Scripted") -> None:
    frames: list[list[Any]] = []
    server = scripted(echo(frames))

    async def main() -> None:
        db = kv.aio.connect(server.address)
        assert await asyncio.gather(*(db.get(key) for key in "abc"), db.set("d", b"")) == [b"a", b"b", b"c", 7]
        assert await asyncio.gather(*(db.get(key) for key in "ab")) == [b"a", b"b"]
        await db.close()

    run(main)
    assert [[request[0] for request in frame] for frame in frames] == [["get"] * 3 + ["set"], ["get"] * 2]
    assert server.connections == 1


def test_too_many_calls_for_one_frame_go_into_several(run: Callable[..., Any], shared_daemon: "Daemon") -> None:
    async def main() -> None:
        async with kv.aio.connect(shared_daemon.address, timeout=DEADLINE_S) as db:
            keys = [f"many:{number}" for number in range(10_000)]
            await asyncio.gather(*(db.set(key, key.encode()) for key in keys))
            assert await asyncio.gather(*(db.get(key) for key in keys)) == [key.encode() for key in keys]
            large = await asyncio.gather(*(db.set(f"large:{n}", bytes([n]) * 2**21) for n in range(12)))
            assert large == sorted(set(large)), "in the order of the calls"
            values = await asyncio.gather(*(db.get(f"large:{n}") for n in range(12)))
            assert [value and value[:1] for value in values] == [bytes([n]) for n in range(12)]
            await db.delete(*keys, *(f"large:{n}" for n in range(12)))

    run(main)


def test_an_invalid_call_fails_alone(run: Callable[..., Any], shared_daemon: "Daemon") -> None:
    async def main() -> None:
        async with kv.aio.connect(shared_daemon.address, timeout=DEADLINE_S) as db:
            results = await asyncio.gather(
                db.set("fine", b"1"), db.get("\udc80"), db.increment("fine"), db.get("x" * 5_000),
                db.get("fine"), return_exceptions=True,
            )  # fmt: skip
            kinds = [kv.Position, UnicodeEncodeError, int, kv.Refused, bytes]
            assert [isinstance(*each) for each in zip(results, kinds, strict=True)] == [True] * 5, results
            assert results[2] == 2, "a call that was sent again ran once"
            assert await db.delete("fine") == 1

    run(main)


def test_an_uncontended_read_modify_write_is_two_round_trips(run: Callable[..., Any], scripted: "Scripted") -> None:
    frames: list[list[Any]] = []
    answers = {"begin": 5, "fetch": [[b"1", 3, None, None, None]], "commit": 6, "end": True}

    def script(line: "Line") -> None:
        for requests in iter(line.request, None):
            frames.append(requests)
            line.reply(*(answers[request[0]] for request in requests))

    server = scripted(script)

    async def main() -> None:
        async with kv.aio.connect(server.address) as db, db.transaction() as txn:
            txn.set("a", (await txn.get("a") or b"") + b"0")

    run(main)
    with kv.connect(server.address) as db, db.transaction() as txn:
        txn["a"] += b"0"
    for first, last in (frames[:2], frames[2:]):
        assert first == [["begin"], ["fetch", ["a"], -1]]
        assert last[0][:5] == ["commit", {"a": b"10"}, {"a": 3}, [], 5]
        assert last[1] == ["end", 5]


# ---------------------------------------------------------------------- cancellation


def test_a_hundred_thousand_cancellations_shift_no_reply(shared_daemon: "Daemon") -> None:
    """Tasks read keys whose values are the keys, and are cancelled at random moments: before, in and after a frame."""
    generator = random.Random(20_250_727)  # noqa: S311  # a seed, so that the test can be repeated
    keys = [f"echo:{number}" for number in range(500)]
    cancelled = answered = 0

    async def ask(db: AsyncClient, turns: int) -> None:
        nonlocal answered
        for _ in range(turns):
            await asyncio.sleep(0)
        key = generator.choice(keys)
        kind = generator.randrange(4)
        if kind == 0:
            assert await db.get_many([key, "no"]) == {key: key.encode(), "no": None}
        elif kind == 1:
            version = await db.set(key, key.encode())
            assert isinstance(version, kv.Position)
        else:
            assert await db.get(key) == key.encode()
        answered += 1

    async def main() -> None:
        nonlocal cancelled
        async with kv.aio.connect(shared_daemon.address, timeout=DEADLINE_S) as db:
            await db.set_many({key: key.encode() for key in keys})
            connection = db._current_connection()
            stream = connection._stream
            while cancelled < CANCELLATIONS:
                tasks = [asyncio.create_task(ask(db, generator.randrange(3))) for _ in range(200)]
                for _ in range(generator.randrange(6)):
                    await asyncio.sleep(0)
                    for task in generator.sample(tasks, 60):
                        task.cancel()
                for result in await asyncio.gather(*tasks, return_exceptions=True):
                    if isinstance(result, asyncio.CancelledError):
                        cancelled += 1
                    elif result is not None:
                        raise result
            assert await db.get_many(keys) == {key: key.encode() for key in keys}
            assert connection._stream is stream, "on one and the same connection"
            assert not connection._queue
            await db.delete(*keys)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
    assert cancelled >= CANCELLATIONS
    assert answered > CANCELLATIONS / 10


def test_a_cancelled_transaction_ends_its_snapshot(run: Callable[..., Any], scripted: "Scripted") -> None:
    frames: list[list[Any]] = []
    answers: dict[str, Any] = {"begin": 5, "fetch": [[b"1", 3, None, None, None]], "end": True, "ping": True}

    def script(line: "Line") -> None:
        for requests in iter(line.request, None):
            frames.append(requests)
            line.reply(*(answers[request[0]] for request in requests))

    async def main() -> None:
        async def read() -> None:
            async with db.transaction() as txn:
                await txn.get("a")

        async with kv.aio.connect(server.address) as db:
            await db.ping()
            task = asyncio.create_task(read())
            while not task.done():
                await asyncio.sleep(0)
                task.cancel()
            while ["end", 5] not in [request for frame in frames for request in frame]:
                await db.ping()

    server = scripted(script)
    run(main)
    requests = [request for frame in frames for request in frame]
    assert requests.count(["begin"]) == requests.count(["end", 5]) == 1


def test_a_call_cancelled_before_it_is_sent_is_not_sent(run: Callable[..., Any], scripted: "Scripted") -> None:
    frames: list[list[Any]] = []
    server = scripted(echo(frames))

    async def main() -> None:
        async with kv.aio.connect(server.address) as db:
            await db.get("a")
            call = asyncio.ensure_future(db.set("never", b""))
            call.cancel()
            await db.get("b")

    run(main)
    assert frames == [[["get", "a"]], [["get", "b"]]]


# ---------------------------------------------------------------------- deadlines, and the end of the connection


def test_each_call_has_a_deadline_and_late_replies_are_dropped(run: Callable[..., Any], scripted: "Scripted") -> None:
    def late(line: "Line") -> None:
        requests = line.request()
        server.release.wait(DEADLINE_S)
        line.reply(*(b"late" for _ in requests or []))
        echo([])(line)

    async def main() -> None:
        async with kv.aio.connect(server.address, timeout=SHORT_S) as db:
            results = await asyncio.gather(db.get("a"), db.set("b", b""), return_exceptions=True)
            assert [type(result) for result in results] == [kv.TimedOut] * 2
            assert [result.maybe_committed for result in results if isinstance(result, kv.TimedOut)] == [False, True]
            server.release.set()
            db._current_connection()._settings = kv.ClientSettings(server.address, timeout=DEADLINE_S)
            assert await asyncio.gather(db.get("c"), db.get("d")) == [b"c", b"d"]

    server = scripted(late)
    run(main)
    assert server.connections == 1


def test_a_timeout_does_not_end_calls_of_the_same_turn(run: Callable[..., Any], scripted: "Scripted") -> None:
    """The loop may run the timer after a call and before the end of its turn."""

    async def main() -> None:
        async with kv.aio.connect(server.address, timeout=DEADLINE_S) as db:
            await db.get("a")
            call = db.get("b")
            db._current_connection()._time_out()
            assert await call == b"b"

    server = scripted(echo([]))
    run(main)


def test_without_a_daemon_every_call_is_unavailable(run: Callable[..., Any]) -> None:
    async def main() -> None:
        db = kv.aio.connect("/nonexistent/kvd.sock")
        for result in await asyncio.gather(db.get("a"), db.set("a", b""), db.ping(), return_exceptions=True):
            assert isinstance(result, kv.Unavailable)
        await db.close()

    run(main)


def test_calls_are_sent_again_after_a_goodbye_and_after_a_break(run: Callable[..., Any], scripted: "Scripted") -> None:
    ids: list[bytes] = []

    def goodbye(line: "Line") -> None:
        line.request()
        line.goodbye()

    def hang_up(line: "Line") -> None:
        ids.extend(request[2]["id"] for request in line.request() or [] if request[0] == "set")

    def serve(line: "Line") -> None:
        for requests in iter(line.request, None):
            ids.extend(request[2]["id"] for request in requests if request[0] == "set")
            line.reply(*(request[1].encode() if request[0] == "get" else 7 for request in requests))

    def serve_one(line: "Line") -> None:
        line.reply(*(request[1].encode() for request in line.request() or []))
        hang_up(line)

    server = scripted(goodbye, serve_one, serve)

    async def main() -> None:
        async with kv.aio.connect(server.address) as db:
            assert await asyncio.gather(db.get("a"), db.get("b")) == [b"a", b"b"]
            assert await asyncio.gather(db.get("c"), db.set("d", b"")) == [b"c", 7]

    run(main)
    assert server.connections == 3
    assert len(ids) == 2
    assert ids[0] == ids[1], "the write was sent again under the same id"


def test_the_client_reconnects_to_a_restarted_daemon(run: Callable[..., Any], start_daemon: Callable[..., Any]) -> None:
    async def main() -> None:
        daemon = start_daemon()
        async with kv.aio.connect(daemon.address) as db:
            await db.set("a", b"1")
            await asyncio.to_thread(daemon.terminate)
            await asyncio.to_thread(start_daemon)
            assert await db.get("a") is None
            assert await db.set("a", b"2") > 0

    run(main)


def test_closing_the_client_ends_its_calls(run: Callable[..., Any], scripted: "Scripted") -> None:
    def silent(line: "Line") -> None:
        line.request()
        server.release.wait(DEADLINE_S)

    async def main() -> None:
        db = kv.aio.connect(server.address, timeout=DEADLINE_S)
        call = asyncio.ensure_future(db.set("a", b""))
        while not db._current_connection()._under_way() or db._current_connection().protocol is None:
            await asyncio.sleep(0.001)
        await db.close()
        with pytest.raises(kv.ConnectionLost) as failed:
            await call
        assert failed.value.maybe_committed

    server = scripted(silent)
    run(main)


@pytest.mark.parametrize("data", [b"\0\0\0\1\xc1", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0\0\0\3\x92\xc0\xc0"])
def test_a_peer_with_another_protocol_is_a_protocol_error(
    run: Callable[..., Any], scripted: "Scripted", data: bytes
) -> None:
    def garbage(line: "Line") -> None:
        line.request()
        line.socket.sendall(data)
        line.request()

    server = scripted(garbage, echo([]))

    async def main() -> None:
        async with kv.aio.connect(server.address) as db:
            with pytest.raises(kv.ProtocolError):
                await db.get("a")
            assert await db.get("a") == b"a"

    run(main)


def test_a_client_may_be_used_in_one_loop_after_another(shared_daemon: "Daemon") -> None:
    db = kv.aio.connect(shared_daemon.address)
    for _ in range(3):

        async def main() -> None:
            assert await db.ping()
            await db.close()

        asyncio.run(main())


def test_a_child_closes_its_copy_of_the_connection_and_opens_its_own(shared_daemon: "Daemon") -> None:
    db = kv.aio.connect(shared_daemon.address)

    async def use() -> None:
        await db.set("ephemeral", b"1", ephemeral=True)
        pid = os.fork()
        if pid == 0:
            try:
                asyncio.events._set_running_loop(None)

                async def child() -> None:
                    assert await db.get("ephemeral") == b"1"

                asyncio.new_event_loop().run_until_complete(child())
                os._exit(0)
            except BaseException:
                os._exit(1)
        _, status = await asyncio.to_thread(os.waitpid, pid, 0)
        assert status == 0
        assert await db.get("ephemeral") == b"1", "the child's end did not end the parent's connection"
        await db.close()

    asyncio.run(use())
