"""How long a ping waits while another connection grows the server to many keys."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.context import Context
from bench.peers.base import Peer
from bench.process import Child, clean_environment
from bench.rows import Row, Samples, Target
from bench.servers import Server

_MAX_ROUNDS = 3
_LIMIT_MS = 10.0
_CHECKOUT = Path(__file__).parent.parent
IDLE = "idle kvd"

Summary = dict[str, float]


@dataclass(frozen=True)
class Figure:
    """A figure of the pinger's summary that becomes a row."""

    title: str
    field: str
    target: Target | None


_WORST = Figure("worst ping", "worst_ms", Target("<=", _LIMIT_MS, of="value", worst=True))
_OWN = Figure("worst, server's CPU time", "worst_own_ms", Target("<=", _LIMIT_MS, of="value", worst=True))
_P999 = Figure("p99.9 of pings", "p999_ms", None)


def stall(context: Context) -> Iterator[Row]:
    """kvd while it grows, each peer while it grows, and the floor: an idle kvd on an equally busy machine."""
    summaries: dict[str, list[Summary]] = {}
    for _ in range(min(context.rounds, _MAX_ROUNDS)):
        for peer in (context.kvd, *context.peers):
            summaries.setdefault(peer.name, []).append(pinged_while_growing(context, peer))
        summaries.setdefault(IDLE, []).append(pinged_while_another_grows(context))
    for figure in (_WORST, _OWN, _P999):
        yield from _rows(context, figure, summaries)


def pinged_while_growing(context: Context, peer: Peer) -> Summary:
    """Ping a fresh server while it grows."""
    with context.fresh(peer) as server:
        return pinged(context, server, lambda: server.load(context.many_keys))


def pinged_while_another_grows(context: Context) -> Summary:
    """Ping an idle kvd while another kvd grows: its delays come from the machine."""
    with context.fresh(context.kvd) as busy:
        return pinged(context, context.loaded(context.kvd), lambda: busy.load(context.many_keys))


def pinged(context: Context, server: Server, work: Callable[[], None]) -> Summary:
    """Ping the server from another process while `work` runs."""
    ping = server.peer.ping()
    reply = "frame" if ping.reply_bytes is None else str(ping.reply_bytes)
    argv = [sys.executable, "-m", "bench.pinger", str(server.socket), str(server.pid), ping.request.hex(), reply]
    pinger = Child(argv, context.new_directory() / "pinger.log", clean_environment(), cwd=_CHECKOUT)
    try:
        pinger.wait_for_output("ready", 20)
        work()
    finally:
        pinger.stop()
    pinger.wait_for_output("}", 1)
    summary: Summary = json.loads(pinger.output().partition("ready")[2])
    return summary


def _rows(context: Context, figure: Figure, summaries: dict[str, list[Summary]]) -> Iterator[Row]:
    samples = {name: Samples(name, tuple(one[figure.field] for one in many)) for name, many in summaries.items()}
    ours = samples.pop("kvd")
    title = f"growing to {context.many_keys:,} keys: {figure.title}"
    note = _counts(summaries["kvd"]) if figure is _WORST else ""
    for name, theirs in samples.items():
        beside_floor = name == IDLE
        yield Row(title, "ms", ours, theirs, figure.target if beside_floor else None, note if beside_floor else "")


def _counts(many: list[Summary]) -> str:
    slow = " ".join(f"{one['over_5_ms']:.0f}/{one['pings']:.0f}" for one in many)
    return f"pings over 5 ms, by round: {slow}"
