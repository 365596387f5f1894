"""What a client can ask: each operation is a request of the wire and a function that reads its reply. No I/O.

Both clients share the operations; they differ only in how a frame travels.
"""

from __future__ import annotations

from kv.errors import ProtocolError
from kvd.protocol import Position, store_of

TYPE_CHECKING = False  # importing typing to ask it would cost the short-lived command 7 ms
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import timedelta
    from typing import Any, TypeVar
    from typing import Generic as Generic

    from kv.results import Commit, HotKeys, SlowFrame, Version, Versioned
    from kv.results import Item as Item

    T = TypeVar("T")
    Range = tuple[str, str | None]
else:
    T = None

    class Generic:
        """Stands in for typing.Generic, which only a type checker needs."""

        def __class_getitem__(cls, _: object) -> type:
            return cls


PROTOCOL = 1
# As a version to read at: the snapshot of the last begin on this connection.
BEGUN = -1
MAX_PAGE_SIZE = 65_536
_STRING = {str}


class Operation(Generic[T]):
    """A request, and a function that reads its successful reply.

    ``options`` is the last element of a write's request; it can carry an id. None for what carries no id.
    ``bound_to``: it releases what belongs to this connection's protocol, and does nothing on another connection.
    ``store_id``: the request names a version of this store, and means nothing to another one. ``has_positions``:
    ``read`` also takes the type of the positions in the connection's store, which makes them of versions.
    """

    __slots__ = ("bound_to", "has_positions", "options", "read", "request", "store_id", "writing")

    def __init__(
        self,
        request: tuple[object, ...],
        read: Callable[..., T],
        *,
        options: dict[str, object] | None = None,
        writing: bool = False,
        bound_to: object = None,
        store_id: str | None = None,
        has_positions: bool = False,
    ) -> None:
        self.request = request
        self.read = read
        self.store_id = store_id
        self.has_positions = has_positions
        self.options = options
        self.writing = writing or options is not None
        self.bound_to = bound_to


def write_options(
    ttl: float | timedelta | None = None,
    keep_ttl: bool = False,
    ephemeral: bool = False,
    sync: bool | None = None,
) -> dict[str, object]:
    """Return the options of a write as the wire has them: how long its keys live, and whether to wait for the disk."""
    options: dict[str, object] = {}
    if ttl is not None:
        options["ttl"] = milliseconds(ttl)
    if keep_ttl:
        options["keep_ttl"] = True
    if ephemeral:
        options["ephemeral"] = True
    if sync is not None:
        options["sync"] = bool(sync)
    return options


def milliseconds(duration: float | timedelta) -> int:
    """Return a duration in whole milliseconds, rounded up. Raises TypeError, ValueError, OverflowError."""
    if hasattr(duration, "total_seconds"):
        seconds: float = duration.total_seconds()
    elif isinstance(duration, bool) or not (hasattr(duration, "__index__") or hasattr(duration, "__float__")):
        raise TypeError(f"a duration is seconds or a timedelta, not {type(duration).__name__}")
    else:
        seconds = duration.__index__() if hasattr(duration, "__index__") else float(duration)
    if seconds - seconds:  # infinite, or not a number
        raise ValueError(f"a duration is a finite number of seconds, not {duration}; None means without end")
    return -int(-seconds * 1000 // 1)


def text(thing: str, what: str = "a key") -> str:
    """Return a key, or other text, as the wire takes it. Raises TypeError for what is not a string."""
    if type(thing) is str:
        return thing
    if isinstance(thing, str):
        return str.__str__(thing)  # a subclass may print itself as anything
    hint = "; decode bytes first, as in key.decode()" if isinstance(thing, bytes | bytearray | memoryview) else ""
    raise TypeError(f"{what} is a string, not {type(thing).__name__}{hint}")


def texts(keys: Iterable[str]) -> list[str]:
    """Return several keys as the wire takes them. Raises TypeError for anything else, and for a single string."""
    if isinstance(keys, str | bytes | bytearray | memoryview):
        raise TypeError(f"several keys are wanted, as in [{keys!r}], not one {type(keys).__name__}")
    found = list(keys)
    return found if set(map(type, found)) <= _STRING else [text(key) for key in found]


def number(thing: int, what: str) -> int:
    """Return an integer as the wire takes it. Raises TypeError for what is none."""
    if type(thing) is int:
        return thing
    if isinstance(thing, bool) or not hasattr(thing, "__index__"):
        raise TypeError(f"{what} is an integer, not {type(thing).__name__}")
    return int(thing.__index__())


def number_or_none(thing: int | None, what: str) -> int | None:
    """As number, where None is allowed."""
    return None if thing is None else number(thing, what)


def binary(value: bytes) -> bytes:
    """Return a value as the wire takes it. Raises TypeError for what is not like bytes."""
    if type(value) is bytes:
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise TypeError(f"a value is bytes, not {type(value).__name__}; encode text first, as in value.encode()")


# ---------------------------------------------------------------------- reading replies


def _unexpected(reply: object) -> ProtocolError:
    return ProtocolError(f"the daemon's reply has an unexpected form ({type(reply).__name__})", "bad_reply")


def _value(reply: object) -> bytes | None:
    if reply is None or type(reply) is bytes:
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


def _position(reply: object, position: type[Position] = Position) -> Position:
    return position(_integer(reply))


def _bare(version: int | None) -> int | None:
    """Return a version as the wire takes it: the encoder takes no subclass of int."""
    return number_or_none(version, "a version")


def _text(reply: object) -> str:
    if isinstance(reply, str):
        return reply
    raise _unexpected(reply)


def _time(reply: object) -> int | None:
    return None if reply is None else _integer(reply)


def _pairs(reply: object) -> dict[str, str | int]:
    return dict(_list(reply))  # type: ignore[arg-type]  # raises for anything else, which the caller expects


def _page(reply: object, start: str) -> tuple[list[Item], str | None]:
    from kv.results import Item

    items, following = _list(reply)
    return [Item(*item) for item in _list(items)], _following(following, start)  # type: ignore[misc]


def _following(reply: object, start: str) -> str | None:
    """Read where the page after the one from ``start`` begins. Raises ProtocolError unless that leads to an end."""
    following = None if reply is None else _text(reply)
    _check_progress(following is None or following > start)
    return following


def _check_progress(progresses: bool) -> None:
    if not progresses:
        raise ProtocolError("the daemon's pages do not go on: it returns one again", "bad_reply")


def _seconds_left(reply: object) -> list[float | None]:
    left = [_time(each) for each in _list(reply)]
    return [None if ms is None else float("inf") if ms < 0 else ms / 1000 for ms in left]


def _versions(reply: object, position: type[Position] = Position) -> list[Version]:
    from kv.results import Version, author

    versions = []
    for entry in _list(reply):
        version, value, time, who = _list(entry)
        versions.append(Version(_position(version, position), _value(value), _time(time), author(who)))
    return versions


def _commits(reply: object, position: type[Position] = Position) -> list[Commit]:
    from kv.results import Commit, author

    commits = []
    for entry in _list(reply):
        version, time, who, keys = _list(entry)
        commits.append(
            Commit(_position(version, position), _time(time), author(who), [str(key) for key in _list(keys)])
        )
    return commits


# ---------------------------------------------------------------------- operations


def hello(client_name: str, token: str | None) -> Operation[list[object]]:
    """Agree on the protocol, and identify the client."""
    request = ("hello", PROTOCOL, client_name) if token is None else ("hello", PROTOCOL, client_name, token)
    return Operation(request, _list)


def version() -> Operation[Position]:
    """The current version."""

    def read(reply: object, position: type[Position] = Position) -> Position:
        return _position(_list(reply)[3], position)

    return Operation(("hello", PROTOCOL, "kv"), read, has_positions=True)


PING = ("ping",)
ATTACH = ("attach",)


def ping() -> Operation[bool]:
    """Whether the daemon answers."""
    return Operation(PING, bool)


def metrics() -> Operation[dict[str, int]]:
    """Counters by name."""
    return Operation(("metrics",), _pairs)  # type: ignore[arg-type]


def exposition() -> Operation[str]:
    """All metrics, in Prometheus' text format."""
    return Operation(("exposition",), _text)


def status() -> Operation[dict[str, str | int]]:
    """What the daemon says about itself, by name."""
    return Operation(("status",), _pairs)


def reload() -> Operation[list[str]]:
    """Have the daemon read its configuration again; reads as what changed."""
    return Operation(("reload",), lambda reply: [str(line) for line in _list(reply)])


def access(
    key: str, uid: int | None, gids: list[int], certificate: str | None, token: str | None
) -> Operation[dict[str, Any]]:
    """What a user may do with a key: rights, reason and rules, in words."""
    return Operation(("access", text(key), number_or_none(uid, "a uid"), gids, certificate, token), _access)


def _access(reply: object) -> dict[str, Any]:
    rights, reason, rules = _list(reply)
    return {"rights": [*map(str, _list(rights))], "reason": str(reason), "rules": [*map(str, _list(rules))]}


def slow_log(limit: int, reset: bool) -> Operation[list[SlowFrame]]:
    """The last frames that took the daemon long, the newest first."""
    return Operation(
        ("slowlog", number(limit, "a limit"), bool(reset)),
        lambda reply: [_slow(entry) for entry in _list(reply)],
        writing=reset,
    )


def _slow(entry: object) -> SlowFrame:
    from kv.results import SlowFrame, author

    time, held_us, who, kinds, keys, more = _list(entry)
    requests = {str(name): _integer(count) for name, count in map(_list, _list(kinds))}
    return SlowFrame(_integer(time), _integer(held_us), author(who), requests, [*map(str, _list(keys))], bool(more))


def largest(start: str, limit: int) -> Operation[tuple[dict[str, int], str | None]]:
    """The largest values of the next keys from ``start`` on, and where the next page begins."""

    def read(reply: object) -> tuple[dict[str, int], str | None]:
        sizes, following = _list(reply)
        return _numbers(sizes), _following(following, start)

    return Operation(("largest", start, limit), read)


def hottest(by: str, limit: int) -> Operation[HotKeys]:
    """The keys most often in "reads" or "writes", with an estimate of how often."""

    def read(reply: object) -> HotKeys:
        from kv.results import HotKeys

        covered_ms, keys = _list(reply)
        return HotKeys(_integer(covered_ms) / 1000, _numbers(keys))

    return Operation(("hottest", text(by, "by"), number(limit, "a limit")), read)


def _numbers(pairs: object) -> dict[str, int]:
    return {str(key): _integer(number) for key, number in map(_list, _list(pairs))}


def checkpoint() -> Operation[int]:
    """Have the daemon begin a checkpoint; reads as the version that it will cover."""
    return Operation(("checkpoint",), _integer)


def backup() -> Operation[bool]:
    """Turn the connection into a feed of a backup."""
    return Operation(("backup",), bool)


def shutdown() -> Operation[int]:
    """Have the daemon stop; reads as its process id."""
    return Operation(("shutdown",), lambda reply: _integer(_list(reply)[0]), writing=True)


def get(key: str) -> Operation[bytes | None]:
    """The value of ``key``."""
    return Operation(("get", key if type(key) is str else text(key)), _value)


def get_many(keys: Iterable[str], at: int | None) -> Operation[dict[str, bytes | None]]:
    """The values of ``keys``, all of one instant."""
    keys = texts(keys)
    request = ("get_many", keys) if at is None else ("get_many", keys, number(at, "a version"))
    read = lambda reply: dict(zip(keys, map(_value, _list(reply)), strict=True))  # noqa: E731
    return Operation(request, read, store_id=store_of(at))


def fetch(keys: Iterable[str], at: int | None) -> Operation[dict[str, Versioned]]:
    """Values with their versions, all of one instant."""
    from kv.results import Versioned

    keys = texts(keys)

    def read(reply: object, position: type[Position] = Position) -> dict[str, Versioned]:
        entries = zip(keys, map(_list, _list(reply)), strict=True)
        return {key: Versioned(_value(entry[0]), _position(entry[1], position)) for key, entry in entries}

    request = ("fetch", keys) if at is None else ("fetch", keys, number(at, "a version"))
    return Operation(request, read, store_id=store_of(at), has_positions=True)


def set_many(entries: dict[str, bytes], options: dict[str, object]) -> Operation[Position]:
    """Store all entries in one commit."""
    if not set(map(type, entries)) <= _STRING:
        entries = {text(key): value for key, value in entries.items()}
    return Operation(("set", entries), _position, options=options, has_positions=True)


def delete(keys: Iterable[str], missing_ok: bool, options: dict[str, object]) -> Operation[int]:
    """Delete all keys in one commit, or none; reads as their count."""
    return Operation(
        ("delete", texts(keys), bool(missing_ok)), lambda reply: _integer(_list(reply)[1]), options=options
    )


def increment(key: str, by: int, options: dict[str, object]) -> Operation[int]:
    """Add to a number; reads as the new number."""
    return Operation(
        ("increment", text(key), number(by, "by")), lambda reply: _integer(_list(reply)[0]), options=options
    )


def commit(
    writes: Mapping[str, bytes | None],
    reads: Mapping[str, int] | None,
    ranges: Iterable[Range],
    snapshot: int | None,
    options: dict[str, object],
) -> Operation[Position]:
    """Write (None deletes) if nothing that was read has changed. Raises ValueError for versions of several stores."""
    checked = {text(key): None if value is None else binary(value) for key, value in writes.items()}
    reads = reads or {}
    store_id = only_store({store_of(snapshot), *map(store_of, reads.values())})
    versions = {text(key): number(version, "a version") for key, version in reads.items()}
    request = ("commit", checked, versions, list(map(_range, ranges)), _bare(snapshot))
    return Operation(request, _position, options=options, store_id=store_id, has_positions=True)


def _range(bounds: Range) -> tuple[str, str | None]:
    start, end = bounds
    return text(start, "a range's start"), None if end is None else text(end, "a range's end")


def only_store(stores: set[str | None]) -> str | None:
    """Return the one store to which the versions of a request belong. Raises ValueError if there are several."""
    stores.discard(None)
    if len(stores) > 1:
        raise ValueError("these versions belong to several stores: the daemon has begun another one in between")
    return stores.pop() if stores else None


def touch(keys: Iterable[str], ttl: float | timedelta | None) -> Operation[list[bool]]:
    """Have keys live for ``ttl`` from now on; reads as whether each exists."""
    ttl_ms = None if ttl is None else milliseconds(ttl)
    return Operation(
        ("touch", texts(keys), ttl_ms), lambda reply: [bool(exists) for exists in _list(reply)], options={}
    )


def ttl(keys: Iterable[str]) -> Operation[list[float | None]]:
    """How many seconds keys still live."""
    return Operation(("ttl", texts(keys)), _seconds_left)


def scan(
    start: str, end: str | None, limit: int, at: int | None, keys_only: bool
) -> Operation[tuple[list[Item], str | None]]:
    """One page of keys in order, and where the next page begins."""
    return Operation(
        ("scan", start, end, limit, _bare(at), keys_only), lambda reply: _page(reply, start), store_id=store_of(at)
    )


def begin() -> Operation[Position]:
    """Begin a snapshot: keep the current version readable."""
    return Operation(("begin",), _position, has_positions=True)


def end(snapshot: int, protocol: object) -> Operation[bool]:
    """End a snapshot on the connection where it began, which is that of ``protocol``."""
    return Operation(("end", int(snapshot)), bool, bound_to=protocol)


def history(key: str, limit: int, before: int | None) -> Operation[list[Version]]:
    """One page of a key's versions, newest first."""

    def read(reply: object, position: type[Position] = Position) -> list[Version]:
        versions = _versions(reply, position)
        _check_progress(before is None or not versions or versions[-1].version < before)
        return versions

    request = ("history", text(key), limit, _bare(before))
    return Operation(request, read, store_id=store_of(before), has_positions=True)


def log(first: int | None, limit: int, store_id: str | None = None) -> Operation[list[Commit]]:
    """One page of commits, oldest first, from version ``first`` of the store ``store_id`` (None: of any) on."""

    def read(reply: object, position: type[Position] = Position) -> list[Commit]:
        commits = _commits(reply, position)
        _check_progress(first is None or not commits or commits[-1].version >= first)
        return commits

    return Operation(("log", _bare(first), limit), read, store_id=store_id, has_positions=True)


def newest_commits(before: int | None, limit: int) -> Operation[list[Commit]]:
    """One page of the newest commits below version ``before``, oldest first."""

    def read(reply: object, position: type[Position] = Position) -> list[Commit]:
        commits = _commits(reply, position)
        _check_progress(before is None or not commits or commits[0].version < before)
        return commits

    request = ("log", None, limit) if before is None else ("log", None, limit, int(before))
    return Operation(request, read, store_id=store_of(before), has_positions=True)


def version_at(time_us: int) -> Operation[Position]:
    """The version that was current at a time."""
    return Operation(("version_at", number(time_us, "a time")), _position, has_positions=True)


def watch(prefix: str, since: int | None) -> Operation[bool]:
    """Turn the connection into a feed. The caller has compared the stores."""
    return Operation(("watch", text(prefix, "a prefix"), _bare(since)), bool)
