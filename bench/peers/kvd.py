"""kvd itself: a frame is a length (u32, big-endian) and a MessagePack array of requests."""

import importlib.metadata
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bench.data import Items
from bench.exchange import Exchange
from bench.peers.base import Peer

SERVE = (sys.executable, "-m", "kv", "serve", "--socket", "{socket}")


def frame(*requests: object) -> bytes:
    """Encode the requests as one frame."""
    payload = msgspec.msgpack.encode(requests)
    return len(payload).to_bytes(4, "big") + payload


def exchange(*requests: object) -> Exchange:
    """One frame and its reply."""
    return Exchange(frame(*requests), None, len(requests))


class Kvd(Peer):
    """kvd, started by the command `serve`, in which {socket} stands for the path of the socket."""

    name = "kvd"

    def __init__(self, serve: Sequence[str] = SERVE) -> None:
        self._serve = tuple(serve)

    def with_options(self, *words: str) -> "Kvd":
        """Return the same daemon with more options."""
        return Kvd((*self._serve, *words))

    def with_variables(self, **variables: str) -> "Kvd":
        """Return the same daemon with these variables in its environment."""
        return Kvd(("env", *(f"{name}={value}" for name, value in variables.items()), *self._serve))

    def missing(self) -> str | None:
        return None  # it is this checkout: a failure to start is reported as an error

    def version(self) -> str:
        try:
            return f"kvd {importlib.metadata.version('kvd')} ({' '.join(self._serve)})"
        except importlib.metadata.PackageNotFoundError:
            return f"kvd, not installed ({' '.join(self._serve)})"

    def command(self, socket: Path) -> Sequence[str]:
        return [word.replace("{socket}", str(socket)) for word in self._serve]

    def ping(self) -> Exchange:
        return exchange(["ping"])

    def gets(self, items: Items) -> Exchange:
        return exchange(*(["get", key] for key in items))

    def get_many(self, items: Items) -> Exchange:
        return Exchange(frame(["get_many", list(items)]), None, len(items))

    def sets(self, items: Items) -> Exchange:
        return exchange(*(["set", {key: value}] for key, value in items.items()))

    def set_many(self, items: Items) -> Exchange:
        return Exchange(frame(["set", items]), None, len(items))

    def _is_good(self, reply: bytes) -> bool:
        try:
            replies = msgspec.msgpack.decode(reply)
        except msgspec.DecodeError:
            return False
        if not isinstance(replies, list):
            return False  # a map rejects the whole frame
        return not any(one is None or isinstance(one, dict) or _has_none(one) for one in replies)


def _has_none(reply: object) -> bool:
    """Whether a get_many missed a key. The benchmarks read only keys that are stored."""
    return isinstance(reply, list) and None in reply
