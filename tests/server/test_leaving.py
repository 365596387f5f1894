"""A client whose token is taken away while a frame of its is in work: each request says whether it ran."""

import asyncio

import msgspec
import pytest

from kvd.requests.peer import Peer
from tests.harness.clocks import SliceClock
from tests.harness.fake_transport import FakeTransport
from tests.harness.in_memory import InMemoryServer, build
from tests.harness.raw_peer import packed
from tests.harness.waiting import until

COUNT = 5_000
FRAME = packed(msgspec.msgpack.encode([["increment", "counter", 1]] * COUNT))


def holder_of(token: str, server: InMemoryServer) -> FakeTransport:
    """A connection over TCP that has shown a token."""
    peer = Peer("tcp", None)
    peer.is_authenticated, peer.token = True, token
    return FakeTransport(server.server, peer)


def counted(server: InMemoryServer) -> int:
    return int(server.executor.peek("counter")[0] or b"0")


@pytest.mark.parametrize("pipelined", [False, True])
def test_a_frame_in_work_is_answered_when_its_token_is_taken_away(pipelined: bool) -> None:
    async def main() -> None:
        server = build(loop=asyncio.get_running_loop(), tokens={"t": None}, clock_ns=SliceClock(), turn_ns=0)
        client = holder_of("t", server)
        client.receive(FRAME)
        if pipelined:
            client.receive(packed(msgspec.msgpack.encode([["increment", "other", 1]])))
        await until(lambda: counted(server))
        assert counted(server) < COUNT, "it is in work"
        server.server.set_tokens({})
        await until(lambda: client.is_closed or client.session.is_closing)
        replies, last = client.replies()
        ran = [reply for reply in replies if isinstance(reply, list)]
        assert len(replies) == COUNT
        assert len(ran) == counted(server), "each request that ran is answered as one that ran"
        assert {reply["error"] for reply in replies[len(ran) :]} == {"unauthenticated"}, "the rest did not run"
        assert last["error"] == "unauthenticated"
        assert server.executor.peek("other") == (None, 0)

    asyncio.run(main())


def test_a_connection_without_a_frame_in_work_ends_at_once() -> None:
    async def main() -> None:
        server = build(loop=asyncio.get_running_loop(), tokens={"t": None, "u": None})
        client, other = holder_of("t", server), holder_of("u", server)
        server.server.set_tokens({"u": None})
        assert [reply["error"] for reply in client.replies()] == ["unauthenticated"]
        assert other.replies() == []

    asyncio.run(main())
