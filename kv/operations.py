"""What a client can ask: each operation as a request of the wire and the reading of its reply. No I/O.

Blocking and other clients share these; they differ only in how a frame travels.
"""

from __future__ import annotations

from kv.errors import ProtocolError

TYPE_CHECKING = False  # importing typing to ask it would cost the short-lived command 7 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

PROTOCOL = 1


class Item:
    """One key of a scan; ``value`` is None if only keys were asked for."""

    __slots__ = ("key", "value", "version")

    def __init__(self, key: str, value: bytes | None, version: int) -> None:
        self.key = key
        self.value = value
        self.version = version

    def __repr__(self) -> str:
        return f"Item(key={self.key!r}, value={self.value!r}, version={self.version!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Item):
            return NotImplemented
        return (self.key, self.value, self.version) == (other.key, other.value, other.version)

    def __hash__(self) -> int:
        return hash((self.key, self.version))


class Operation:
    """A request, how to read its successful reply, and whether it changes anything."""

    __slots__ = ("read", "request", "writing")

    def __init__(self, request: tuple[object, ...], read: Callable[[object], Any], *, writing: bool = False) -> None:
        self.request = request
        self.read = read
        self.writing = writing


def _unexpected(reply: object) -> ProtocolError:
    return ProtocolError(f"a reply of an unexpected form ({type(reply).__name__})", "bad_reply")


def _value(reply: object) -> bytes | None:
    if reply is None or isinstance(reply, bytes):
        return reply
    raise _unexpected(reply)


def _list(reply: object) -> list[object]:
    if isinstance(reply, list):
        return reply
    raise _unexpected(reply)


def _integer(reply: object) -> int:
    if isinstance(reply, int):
        return reply
    raise _unexpected(reply)


def _pairs(reply: object) -> dict[str, str | int]:
    return dict(_list(reply))  # type: ignore[arg-type]  # anything else raises, which the caller expects


def _page(reply: object) -> tuple[list[Item], str | None]:
    items, following = _list(reply)
    return [Item(*item) for item in _list(items)], following  # type: ignore[misc, return-value]


def hello(client_name: str, token: str | None) -> Operation:
    """Agree on the protocol, and say who one is."""
    request = ("hello", PROTOCOL, client_name) if token is None else ("hello", PROTOCOL, client_name, token)
    return Operation(request, _list)


PING = Operation(("ping",), bool)
METRICS = Operation(("metrics",), _pairs)
STATUS = Operation(("status",), _pairs)
RELOAD = Operation(("reload",), lambda reply: [str(line) for line in _list(reply)])
SHUTDOWN = Operation(("shutdown",), lambda reply: _integer(_list(reply)[0]), writing=True)


def get(key: str) -> Operation:
    """The value of ``key``."""
    return Operation(("get", key), _value)


def get_many(keys: list[str], at: int | None) -> Operation:
    """The values of ``keys``, all of one instant."""
    request = ("get_many", keys) if at is None else ("get_many", keys, at)
    return Operation(request, lambda reply: dict(zip(keys, map(_value, _list(reply)), strict=True)))


def set_many(entries: dict[str, bytes]) -> Operation:
    """Store all entries in one commit."""
    return Operation(("set", entries), _integer, writing=True)


def delete(keys: list[str], missing_ok: bool) -> Operation:
    """Delete all keys in one commit, or none; reads as their count."""
    return Operation(("delete", keys, missing_ok), lambda reply: _integer(_list(reply)[1]), writing=True)


def scan(start: str, end: str | None, limit: int, at: int | None, keys_only: bool) -> Operation:
    """One page of keys in order, and where to go on."""
    return Operation(("scan", start, end, limit, at, keys_only), _page)


def prefix_end(prefix: str) -> str | None:
    """The least string after all that begin with ``prefix``; None if there is none."""
    while prefix:
        last = ord(prefix[-1]) + 1
        if last == 0xD800:  # surrogates are no characters
            last = 0xE000
        if last <= 0x10FFFF:
            return prefix[:-1] + chr(last)
        prefix = prefix[:-1]
    return None
