"""The rows of `--against`: how one measurement of a row is made, and the number of measurements in a round."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.completion import SEPARATOR, shell_function_environment
from bench.context import THROUGHPUT_KEYS
from bench.data import chosen, key, value
from bench.errors import BenchError
from bench.peers.kvd import Kvd
from bench.side import CLIENT, SERVER, USERS, WALL, Cost, Side
from bench.throughput import GET_1, GET_64, GET_MANY, SET_1, SET_64, SET_100, Workload

Measure = Callable[[Side, float], Cost]
_NULL = Path(os.devnull)
_MAX_PRESSES = 5
_WIRE = Kvd()  # encodes the requests: the same bytes for both sides


@dataclass(frozen=True)
class ComparedRow:
    """How a row is measured.

    `measure(side, effort)` makes one measurement; with an effort below 1 it does less work, to warm up. A round has
    `pairs` measurements of each side. The row compares the sum of the parts that `compared` names.
    """

    description: str
    unit: str
    pairs: int
    compared: tuple[str, ...]
    measure: Measure

    def cost(self, parts: Cost) -> float:
        """The compared cost of one measurement: the sum of the compared parts."""
        return sum(parts[name] for name in self.compared)


def wire_and_client(work: str, workload: Workload, rounds: int, operations: int) -> Measure:
    """The daemon's cost under the load generator, and the cost of the checkout's own client for the same requests."""
    items = chosen(workload.keys, THROUGHPUT_KEYS)
    exchange = workload.encode(_WIRE, items)
    assert exchange is not None

    def measure(side: Side, effort: float) -> Cost:
        client = side.calls(work, _part(operations, effort), items)[CLIENT]
        return {CLIENT: client, **side.requests(exchange, _part(rounds, effort))}

    return measure


def client_alone(work: str, workload: Workload, operations: int) -> Measure:
    """The cost of the checkout's own client, one call after the other, and of its daemon meanwhile."""
    items = chosen(workload.keys, THROUGHPUT_KEYS)
    return lambda side, effort: side.calls(work, _part(operations, effort), items)


def durable_sets(rounds: int) -> Measure:
    """The daemon's cost of a set that is acknowledged after its sync, under the load generator."""
    exchange = _WIRE.sets(chosen(1, THROUGHPUT_KEYS))
    return lambda side, effort: side.requests(exchange, _part(rounds, effort), durable=True)


def kv_get(side: Side, _effort: float) -> Cost:
    """`kv get KEY`, the whole process."""
    printed = side.server().socket.with_name("printed")
    cost = side.command(("get", key(7)), {}, {1: printed})
    if value(7) not in printed.read_bytes():
        raise BenchError(f"kv get printed {printed.read_bytes()[:300]!r}")
    return cost


def tab(side: Side, _effort: float) -> Cost:
    """The process that the shell starts for TAB after `kv get us`, where 20 keys match.

    Completion stops waiting for the daemon at a deadline of its own and then offers nothing. On a busy machine this
    happens now and then, so such a press is repeated.
    """
    candidates = side.server().socket.with_name("candidates")
    outputs = {1: _NULL, 2: _NULL, 8: candidates, 9: _NULL}
    for _ in range(_MAX_PRESSES):
        cost = side.command((), shell_function_environment("kv get us"), outputs)
        keys = candidates.read_text().split(SEPARATOR)
        if len(keys) == len(USERS):
            return cost
    raise BenchError(f"TAB after `kv get us` offered {keys[:3]!r} in each of {_MAX_PRESSES} presses")


def _part(amount: int, effort: float) -> int:
    return max(1, int(amount * effort))


_CPU = (CLIENT, SERVER)
_CALLS = "one call after the other"
_LOADED = "client: its own; server: 32 connections"

# Reads come before writes: the reads meet a daemon without history.
ROWS: dict[str, ComparedRow] = {
    "get1": ComparedRow(
        f"1 get a frame; {_LOADED}", "us", 3, _CPU, wire_and_client("get1", GET_1, 24_000, 8_000)
    ),
    "get64": ComparedRow(
        f"64 gets a frame; {_LOADED}", "us", 3, _CPU, wire_and_client("get64", GET_64, 8_000, 64_000)
    ),
    "get_many": ComparedRow(f"get of 100 keys; {_CALLS}", "us", 3, _CPU, client_alone("get_many", GET_MANY, 3_000)),
    "kv_get": ComparedRow("kv get KEY, the whole process", "ms", 12, (WALL,), kv_get),
    "tab": ComparedRow("TAB after `kv get us`, the whole process", "ms", 12, (WALL,), tab),
    "set1": ComparedRow(
        f"1 set a frame; {_LOADED}", "us", 3, _CPU, wire_and_client("set1", SET_1, 20_000, 8_000)
    ),
    "set64": ComparedRow(
        f"64 sets a frame; {_LOADED}", "us", 3, _CPU, wire_and_client("set64", SET_64, 2_500, 32_000)
    ),
    "set100": ComparedRow(f"set of 100 keys; {_CALLS}", "us", 3, _CPU, client_alone("set100", SET_100, 1_000)),
    "durable": ComparedRow(
        "1 set a frame, synced; the daemon alone, 32 connections", "us", 3, (SERVER,), durable_sets(8_000)
    ),
}  # fmt: skip
