"""What durability costs: sets that wait for the disk, sets that only write, and recovery."""

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.context import THROUGHPUT_KEYS, Context
from bench.data import batches, chosen
from bench.peers import etcd
from bench.peers.base import Peer
from bench.peers.redis import Redis
from bench.rows import Row, Samples, Target
from bench.servers import Server
from bench.throughput import CONNECTIONS, operations_a_second
from kvd.engine.database import Database
from kvd.engine.journal import DurableJournal
from kvd.engine.replay import Replay
from kvd.journal.checkpoint import CheckpointFile, slices
from kvd.journal.commit_log import CommitLog
from kvd.journal.disk import Disk
from kvd.journal.records import Header
from kvd.journal.recovery import recover
from kvd.store.authors import NO_AUTHOR

_MIB = 1024 * 1024


class DurableRedis(Redis):
    """redis-server that syncs its append-only file before each reply. The file is beside the socket."""

    name = "redis, appendfsync always"

    def command(self, socket: Path) -> Sequence[str]:
        more = ["--appendonly", "yes", "--appendfsync", "always", "--dir", str(socket.parent)]
        return [self.program, "--port", "0", "--unixsocket", str(socket), "--save", "", *more]


def durable_sets(context: Context) -> Iterator[Row]:
    """One set a frame over 32 connections, acknowledged after the sync; and acknowledged after the write."""
    with ExitStack() as stack:
        always = _durable(context, stack, "always")
        yield from _compare(context, stack, always, DurableRedis(), "durable set, sync always", 60_000, 1.0)
        if etcd.missing() is None:
            yield _beside_etcd(context, stack, always, 20_000)
        never = _durable(context, stack, "never")
        yield from _compare(context, stack, never, context.kvd, "set, sync never | in memory", 60_000, 0.7)


def _beside_etcd(context: Context, stack: ExitStack, ours: Server, count: int) -> Row:
    """Durable sets beside one node of etcd, which syncs its log before it replies. etcd serves only TCP."""
    load, items = context.program("load"), chosen(1, THROUGHPUT_KEYS)
    theirs = stack.enter_context(etcd.Etcd(context.new_directory()))
    encoded = {key.encode(): value for key, value in items.items()}
    figures: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(context.rounds):
        figures["ours"].append(operations_a_second(load, ours, ours.peer.sets(items), CONNECTIONS, context.work(count)))
        figures["theirs"].append(theirs.sets_a_second(encoded, CONNECTIONS, context.work(count)))
    beside = Samples("etcd, one node", tuple(figures["theirs"]))
    return Row("durable set, sync always", "/s", Samples("kvd", tuple(figures["ours"])), beside, Target(">=", 3.0))


def _durable(context: Context, stack: ExitStack, sync: str) -> Server:
    directory = context.new_directory()
    kvd = context.kvd.with_options("--data-dir", str(directory / "data"), "--data-sync", sync)
    return stack.enter_context(Server(kvd, directory))


def _compare(
    context: Context, stack: ExitStack, ours: Server, peer: Peer, title: str, count: int, target: float
) -> Iterator[Row]:
    load, items = context.program("load"), chosen(1, THROUGHPUT_KEYS)
    theirs = stack.enter_context(context.fresh(peer))
    figures: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(context.rounds):
        for name, server in (("ours", ours), ("theirs", theirs)):
            sets = server.peer.sets(items)
            server.try_once(sets)
            figures[name].append(operations_a_second(load, server, sets, CONNECTIONS, context.work(count)))
    name = "kvd in memory" if peer is context.kvd else peer.name
    beside = Samples(name, tuple(figures["theirs"]))
    yield Row(title, "/s", Samples("kvd", tuple(figures["ours"])), beside, Target(">=", target))


def recovery(context: Context) -> Iterator[Row]:
    """Recover a store from files, in one process: the keys of a checkpoint, and one-key commits of a log."""
    keys, commits = context.work(1_000_000), context.work(400_000)
    loaded, replayed = [], []
    for _ in range(min(context.rounds, 3)):
        loaded.append(_checkpoint_rate(Disk(str(context.new_directory())), keys))
        replayed.append(_log_rate(Disk(str(context.new_directory())), commits))
    keys_target, commits_target = Target(">=", 400_000, of="value"), Target(">=", 200_000, of="value")
    yield Row("recovery from a checkpoint", "keys/s", Samples("kvd", tuple(loaded)), None, keys_target)
    yield Row("recovery from the log", "commits/s", Samples("kvd", tuple(replayed)), None, commits_target)


def _checkpoint_rate(disk: Disk, keys: int) -> float:
    database = Database()
    for items in batches(keys, 1_000):
        database.set(items, NO_AUTHOR)
    header = Header(secrets.randbits(64), 2, database.store.version, database.store.version, bytes(8))
    file = CheckpointFile(disk, header)
    for piece in slices(database):
        file.write(piece)
    file.finish(database.store.version, database.store.time)
    CommitLog(disk, header, _MIB, lambda: secrets.randbits(64)).close()
    return keys / _recovery_s(disk, keys)


class _ByHand:
    """A log that the caller writes."""

    shown = 0

    def wake(self) -> None:
        """Do nothing: the caller writes the log."""

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Do nothing: nothing is ever shown."""


def _log_rate(disk: Disk, commits: int) -> float:
    contents = Replay()
    log = CommitLog(disk, Header(0, 1, 0, 0, bytes(8)), 256 * _MIB, lambda: secrets.randbits(64))
    database = Database(contents=contents, journal=DurableJournal(log, contents, _ByHand()))
    for items in batches(commits, 1):
        database.set(items, NO_AUTHOR)
        if log.pending >= 64 and (batch := log.take()) is not None:
            log.write(batch, sync=False)
            log.release(batch)
    if (batch := log.take()) is not None:
        log.write(batch, sync=False)
    log.close()
    return commits / _recovery_s(disk, commits)


def _recovery_s(disk: Disk, keys: int) -> float:
    contents = Replay()
    begin = time.perf_counter()
    recover(disk, contents)
    took_s = time.perf_counter() - begin
    assert contents.count_keys() == keys
    return took_s
