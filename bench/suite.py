"""The names of the benchmarks, in the order in which they run: those that store a million keys come last."""

from collections.abc import Callable, Iterator

from bench.busy_poll import busy_poll
from bench.checkpoint import checkpoint
from bench.client_cost import importing, miss
from bench.clients import asyncio_clients, transactions
from bench.command import kv_get
from bench.completion import tab
from bench.context import Context
from bench.durable import durable_sets, recovery
from bench.expiry import expiry
from bench.floors import floors
from bench.history import history
from bench.http import http, http_idle
from bench.limits import eviction, rules
from bench.memory import memory
from bench.miss_ratio import miss_ratio
from bench.near import near_cache
from bench.rows import Row
from bench.sharing import hot, mixed
from bench.stall import stall
from bench.stall_more import stalls
from bench.store_commit import commit1000
from bench.tail import many_connections, tail_latency
from bench.throughput import get1, get64, get_many, set1, set64, set100
from bench.tls import tls
from bench.used import used
from bench.worst import worst

Benchmark = Callable[[Context], Iterator[Row]]

# Reads come before writes: the writes leave a history, and the reads are to meet a server without one.
BENCHMARKS: dict[str, Benchmark] = {
    "get64": get64,
    "get1": get1,
    "get_many": get_many,
    "floors": floors,
    "tail": tail_latency,
    "connections": many_connections,
    "kv_get": kv_get,
    "import": importing,
    "miss": miss,
    "set1": set1,
    "set64": set64,
    "set100": set100,
    "asyncio": asyncio_clients,
    "transactions": transactions,
    "near": near_cache,
    "mixed": mixed,
    "hot": hot,
    "busy_poll": busy_poll,
    "commit1000": commit1000,
    "history": history,
    "eviction": eviction,
    "rules": rules,
    "tls": tls,
    "miss_ratio": miss_ratio,
    "http": http,
    "http_idle": http_idle,
    "durable": durable_sets,
    "recovery": recovery,
    "tab": tab,
    "memory": memory,
    "stall": stall,
    "stalls": stalls,
    "expiry": expiry,
    "checkpoint": checkpoint,
    "worst": worst,
    "used": used,
}
