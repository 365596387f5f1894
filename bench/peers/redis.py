"""Redis, which writes nothing to disk: requests in RESP; a pipeline is a sequence of requests."""

from collections.abc import Sequence
from pathlib import Path

from bench.data import VALUE_BYTES, Items
from bench.exchange import Exchange
from bench.peers.base import Peer
from bench.process import output

_VALUE_REPLY = len(b"$%d\r\n" % VALUE_BYTES) + VALUE_BYTES + 2
_OK = len(b"+OK\r\n")


def command(*words: bytes) -> bytes:
    """Encode one request."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


class Redis(Peer):
    """redis-server without persistence."""

    name = "redis"
    program = "redis-server"
    package = "redis-server"

    def version(self) -> str:
        return output([self.program, "--version"]).strip()

    def command(self, socket: Path) -> Sequence[str]:
        return [self.program, "--port", "0", "--unixsocket", str(socket), "--save", "", "--appendonly", "no"]

    def ping(self) -> Exchange:
        return Exchange(command(b"PING"), len(b"+PONG\r\n"), 1)

    def gets(self, items: Items) -> Exchange:
        request = b"".join(command(b"GET", key.encode()) for key in items)
        return Exchange(request, _VALUE_REPLY * len(items), len(items))

    def get_many(self, items: Items) -> Exchange:
        request = command(b"MGET", *(key.encode() for key in items))
        return Exchange(request, len(b"*%d\r\n" % len(items)) + _VALUE_REPLY * len(items), len(items))

    def sets(self, items: Items) -> Exchange:
        request = b"".join(command(b"SET", key.encode(), value) for key, value in items.items())
        return Exchange(request, _OK * len(items), len(items))

    def set_many(self, items: Items) -> Exchange:
        words = (word for key, value in items.items() for word in (key.encode(), value))
        return Exchange(command(b"MSET", *words), _OK, len(items))

    def _is_good(self, reply: bytes) -> bool:
        return not reply.startswith(b"-") and b"\r\n-" not in reply and b"$-1" not in reply
