"""kvd itself: a frame is a u32 length (big-endian) and a MessagePack array of requests."""

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
    """The requests as one frame."""
    payload = msgspec.msgpack.encode(requests)
    return len(payload).to_bytes(4, "big") + payload


def exchange(*requests: object) -> Exchange:
    """One frame and its answer."""
    return Exchange(frame(*requests), None, len(requests))


class Kvd(Peer):
    """kvd, started by `serve`, in which {socket} stands for the socket's path."""

    name = "kvd"

    def __init__(self, serve: Sequence[str] = SERVE) -> None:
        self._serve = tuple(serve)

    def with_options(self, *words: str) -> "Kvd":
        """The same, started with more options."""
        return Kvd((*self._serve, *words))

    def with_variables(self, **variables: str) -> "Kvd":
        """The same, with these in its environment."""
        return Kvd(("env", *(f"{name}={value}" for name, value in variables.items()), *self._serve))

    def missing(self) -> str | None:
        return None  # it is this checkout: if it does not start, that is an error and is reported as one

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
            answer = msgspec.msgpack.decode(reply)
        except msgspec.DecodeError:
            return False
        if not isinstance(answer, list):
            return False  # a map refuses the whole frame
        return not any(one is None or isinstance(one, dict) or _has_none(one) for one in answer)


def _has_none(reply: object) -> bool:
    """Whether a get_many missed a key: every key the benchmarks ask for is there."""
    return isinstance(reply, list) and None in reply
