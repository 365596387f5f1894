"""memcached with its text protocol. It has one thread, like the other servers, and enough memory to evict nothing."""

import getpass
from collections.abc import Sequence
from pathlib import Path

from bench.data import KEY_BYTES, VALUE_BYTES, Items
from bench.exchange import Exchange
from bench.peers.base import Peer
from bench.process import output

_VALUE_REPLY = len(b"VALUE  0 \r\n\r\n") + KEY_BYTES + len(str(VALUE_BYTES)) + VALUE_BYTES
_END = len(b"END\r\n")
_STORED = len(b"STORED\r\n")


class Memcached(Peer):
    """memcached, with one worker thread."""

    name = "memcached"
    program = "memcached"
    package = "memcached"

    def version(self) -> str:
        return output([self.program, "--version"]).strip()

    def command(self, socket: Path) -> Sequence[str]:
        return [self.program, "-s", str(socket), "-t", "1", "-m", "2048", "-u", getpass.getuser()]

    def ping(self) -> Exchange:
        return Exchange(b"mn\r\n", len(b"MN\r\n"), 1)

    def gets(self, items: Items) -> Exchange:
        request = b"".join(b"get %s\r\n" % key.encode() for key in items)
        return Exchange(request, (_VALUE_REPLY + _END) * len(items), len(items))

    def get_many(self, items: Items) -> Exchange:
        request = b"get %s\r\n" % b" ".join(key.encode() for key in items)
        return Exchange(request, _VALUE_REPLY * len(items) + _END, len(items))

    def sets(self, items: Items) -> Exchange:
        request = b"".join(b"set %s 0 0 %d\r\n%s\r\n" % (k.encode(), len(v), v) for k, v in items.items())
        return Exchange(request, _STORED * len(items), len(items))

    def set_many(self, items: Items) -> None:
        return None  # no such request

    def _is_good(self, reply: bytes) -> bool:
        return reply.startswith((b"VALUE", b"STORED", b"MN")) and b"ERROR" not in reply
