"""For each kind of request and each route of HTTP: the input found that holds the daemon's loop longest.

`tests/limits` counts the steps into which the daemon cuts it; the benchmark `worst` measures the longest of them. Both
choose the size: `n` keys, requests or ranges; `big` is the size of a large value.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Request = list[Any]
Load = Callable[[int, int], Iterator[list[Request]]]
_LOAD_KEYS = 1_000


@dataclass(frozen=True)
class Worst:
    """An input: `load` yields the frames that come before it, `frame` returns its requests.

    `steps`: how many steps it has at least, for `n` keys. The last step of a write is its whole commit.
    """

    kind: str
    title: str
    frame: Callable[[int, int], list[Request]]
    load: Load = lambda n, big: iter(())
    steps: Callable[[int], int] = lambda n: 1


@dataclass(frozen=True)
class WorstRoute:
    """An HTTP request: `method`, `target` and the JSON `body` for `n` keys."""

    route: str
    title: str
    method: str
    target: Callable[[int], str]
    body: Callable[[int], bytes] = lambda n: b""
    load: Load = lambda n, big: iter(())
    steps: Callable[[int], int] = lambda n: 1


def key(number: int) -> str:
    """A key of 16 bytes, in an order unlike that of the numbers."""
    return f"w{number * 7_919 % 1_000_003:015d}"


def keys(n: int) -> list[str]:
    """The first `n` keys."""
    return [key(number) for number in range(n)]


def many_keys(n: int, big: int) -> Iterator[list[Request]]:
    """Store the keys."""
    names = keys(n)
    for begin in range(0, n, _LOAD_KEYS):
        yield [["set", dict.fromkeys(names[begin : begin + _LOAD_KEYS], b"v" * 64)]]


def old_keys(n: int, big: int) -> Iterator[list[Request]]:
    """Store the keys, begin a snapshot on this connection, and store them again."""
    yield from many_keys(n, big)
    yield [["begin"]]
    yield from many_keys(n, big)
    for begin in range(0, n, 256):
        yield [["set", {"other": b"%d" % number}] for number in range(begin, min(n, begin + 256))]


def hot_key(n: int, big: int) -> Iterator[list[Request]]:
    """Write one key `n` times, while a snapshot keeps all versions."""
    yield [["set", {"hot": b""}], ["begin"]]
    for begin in range(0, n, 256):
        yield [["set", {"hot": b"%d" % number}] for number in range(begin, min(n, begin + 256))]


def big_value(n: int, big: int) -> Iterator[list[Request]]:
    """Store a large value."""
    yield [["set", {"big": b"x" * big}]]


def attached(n: int, big: int) -> Iterator[list[Request]]:
    """Store the keys."""
    yield from many_keys(n, big)


def per(count: int) -> Callable[[int], int]:
    """One step for each `count` keys or requests."""
    return lambda n: max(1, n // count)


def repeated(request: Request) -> Callable[[int, int], list[Request]]:
    """A frame of `n` of these requests, in 64 KiB at most: larger frames are cut before they are decoded."""
    return lambda n, big: [request] * n


def _commit_of_all(n: int, big: int) -> list[Request]:
    names = keys(n)
    writes = {name: b"x" if number % 2 else None for number, name in enumerate(names)}
    return [["commit", writes, dict.fromkeys(names, 0)]]


def _ranges(n: int, big: int) -> list[Request]:
    return [["commit", {"a": b"1"}, None, [[name, name + "~"] for name in keys(n)], 1]]


WORST: list[Worst] = [
    Worst("hello", "hello, then requests in the same frame", lambda n, big: [["hello", 1, "x"], *[["status"]] * n],
          steps=lambda n: n + 1),
    Worst("attach", "the first attach makes the table", lambda n, big: [["attach"]]),
    Worst("ping", "pings in a frame", repeated(["ping"]), steps=per(256)),
    Worst("get", "gets in a frame", lambda n, big: [["get", name] for name in keys(n)], many_keys, per(256)),
    Worst("get", "7 gets of a large value", lambda n, big: [["get", "big"]] * 7, big_value, lambda n: 7),
    Worst("get_many", "many keys", lambda n, big: [["get_many", keys(n)]], many_keys, per(256)),
    Worst("get_many", "one large value 7 times", lambda n, big: [["get_many", ["big"] * 7]], big_value),
    Worst("get_many", "many keys at a snapshot", lambda n, big: [["get_many", keys(n), -1]], old_keys, per(256)),
    Worst("get_many", "a key of many versions, 64 times", lambda n, big: [["get_many", ["hot"], -1]] * 64, hot_key),
    Worst("fetch", "many keys", lambda n, big: [["fetch", keys(n)]], many_keys, per(256)),
    Worst("fetch", "many keys at a snapshot", lambda n, big: [["fetch", keys(n), -1]], old_keys, per(256)),
    Worst("set", "many keys that are there", lambda n, big: [["set", dict.fromkeys(keys(n), b"y" * 64)]], many_keys,
          per(512)),
    Worst("set", "many new keys", lambda n, big: [["set", dict.fromkeys(keys(n), b"y" * 64)]], steps=per(512)),
    Worst("set", "many keys, each with a ttl",
          lambda n, big: [["set", dict.fromkeys(keys(n), b""), {"ttls": dict.fromkeys(keys(n), 3_600_000)}]],
          steps=per(512)),
    Worst("set", "sets in a frame", lambda n, big: [["set", {name: b"x"}] for name in keys(n)], steps=per(256)),
    Worst("set", "a large value", lambda n, big: [["set", {"big": b"x" * big}]]),
    Worst("delete", "many keys", lambda n, big: [["delete", keys(n), True]], many_keys, per(512)),
    Worst("increment", "increments in a frame",
          lambda n, big: [["increment", f"c{number % 1000}", 1] for number in range(n)], steps=per(256)),
    Worst("commit", "many keys read and written", _commit_of_all, many_keys, per(512)),
    Worst("commit", "many ranges", _ranges, old_keys, per(512)),
    Worst("commit", "a range of all keys", lambda n, big: [["commit", {"a": b"1"}, None, [["w", "x"]], 1]], old_keys),
    Worst("begin", "snapshots begun and ended in a frame", lambda n, big: [["begin"], ["end", 0]] * (n // 2),
          steps=per(256)),
    Worst("end", "ends of no snapshot in a frame", repeated(["end", 5]), steps=per(256)),
    Worst("scan", "scans of whole pages in a frame", lambda n, big: [["scan", "", None, 1_000]] * (n // 100),
          many_keys, lambda n: n // 100),
    Worst("scan", "a page of ever so many keys", lambda n, big: [["scan", "", None, n, None, True]], many_keys),
    Worst("scan", "a key of many versions", lambda n, big: [["scan", "h", None, 10, -1]] * 8, hot_key, lambda n: 8),
    Worst("touch", "many keys", lambda n, big: [["touch", keys(n), 3_600_000]], many_keys, per(512)),
    Worst("ttl", "many keys", lambda n, big: [["ttl", keys(n)]], many_keys, per(512)),
    Worst("history", "a key of many versions", lambda n, big: [["history", "hot", 1_000]] * 8, hot_key, lambda n: 8),
    Worst("history", "before an old version", lambda n, big: [["history", "hot", 10, 3]] * 8, hot_key, lambda n: 8),
    Worst("log", "the newest commits", lambda n, big: [["log", None, 1_000]] * 8, hot_key, lambda n: 8),
    Worst("log", "from an old version", lambda n, big: [["log", 3, 1_000]] * 8, hot_key, lambda n: 8),
    Worst("version_at", "in a frame", repeated(["version_at", 1]), hot_key, lambda n: n),
    Worst("watch", "a watch", lambda n, big: [["watch", ""]]),
    Worst("metrics", "in a frame", repeated(["metrics"]), steps=lambda n: n),
    Worst("exposition", "in a frame", repeated(["exposition"]), steps=lambda n: n),
    Worst("status", "in a frame", repeated(["status"]), steps=lambda n: n),
    Worst("reload", "in a frame", repeated(["reload"]), steps=lambda n: n),
    Worst("access", "in a frame", repeated(["access", "a", 5, [1, 2, 3]]), steps=lambda n: n),
    Worst("slowlog", "in a frame", repeated(["slowlog", 1_000]), steps=lambda n: n),
    Worst("largest", "in a frame", lambda n, big: [["largest", "", 1_000]] * 8, many_keys, lambda n: 8),
    Worst("hottest", "in a frame", lambda n, big: [["hottest", "reads", 1_000]] * 8, many_keys, lambda n: 8),
    Worst("checkpoint", "in a frame", repeated(["checkpoint"]), steps=lambda n: n),
    Worst("backup", "a backup", lambda n, big: [["backup"]]),
    Worst("shutdown", "a shutdown", lambda n, big: [["shutdown"]]),
]  # fmt: skip


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _entries(n: int) -> dict[str, str]:
    return dict.fromkeys(keys(n), "y" * 32)


WORST_ROUTES: list[WorstRoute] = [
    WorstRoute("/v1", "GET of many keys", "GET", lambda n: "/v1", lambda n: _json(keys(n)), many_keys, per(256)),
    WorstRoute("/v1/", "PUT of many records", "PUT", lambda n: "/v1/",
               lambda n: _json([{"Key": name, "Value": "y" * 32} for name in keys(n)]), steps=per(256)),
    WorstRoute("/v1/", "DELETE of many keys", "DELETE", lambda n: "/v1/", lambda n: _json(keys(n)), many_keys),
    WorstRoute("/v1/", "nested without end", "PUT", lambda n: "/v1/", lambda n: b"[" * 100_000),
    WorstRoute("/v1/{key}", "GET of a value", "GET", lambda n: f"/v1/{key(0)}", load=many_keys),
    WorstRoute("/status", "GET", "GET", lambda n: "/status"),
    WorstRoute("/metrics", "GET", "GET", lambda n: "/metrics"),
    WorstRoute("/metrics/prometheus", "GET", "GET", lambda n: "/metrics/prometheus"),
    WorstRoute("/openapi.json", "GET", "GET", lambda n: "/openapi.json"),
    WorstRoute("/v2/keys/{key}", "GET of a value", "GET", lambda n: f"/v2/keys/{key(0)}", load=many_keys),
    WorstRoute("/v2/keys", "a page with values", "GET", lambda n: "/v2/keys?limit=10000&values=true", load=many_keys),
    WorstRoute("/v2/get", "many keys", "POST", lambda n: "/v2/get", lambda n: _json({"keys": keys(n)}), many_keys,
               per(256)),
    WorstRoute("/v2/set", "many keys", "POST", lambda n: "/v2/set", lambda n: _json({"entries": _entries(n)}),
               steps=per(256)),
    WorstRoute("/v2/delete", "many keys", "POST", lambda n: "/v2/delete",
               lambda n: _json({"keys": keys(n), "missing_ok": True}), many_keys),
    WorstRoute("/v2/transaction", "many keys read and written", "POST", lambda n: "/v2/transaction",
               lambda n: _json({"compare": dict.fromkeys(keys(n), 0), "set": _entries(n)}), steps=per(256)),
    WorstRoute("/v2/watch", "GET", "GET", lambda n: "/v2/watch"),
]  # fmt: skip
