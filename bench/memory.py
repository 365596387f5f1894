"""Memory a key: the growth of a fresh server while it stores many keys, divided by the number of keys."""

from collections.abc import Iterator

from bench.context import Context
from bench.exchange import Exchange
from bench.peers.base import Peer
from bench.peers.kvd import Kvd, frame
from bench.rows import Row, Samples, Target


def memory(context: Context) -> Iterator[Row]:
    """100 keys a commit (with a target), and one key a commit; each with a fresh server of each kind."""
    for one_key_a_commit in (False, True):
        figures = {peer: bytes_a_key(context, peer, one_key_a_commit) for peer in (context.kvd, *context.peers)}
        ours = Samples("kvd", (figures.pop(context.kvd),))
        how = "1 key" if one_key_a_commit else "100 keys"
        for peer, figure in figures.items():
            target = Target("<=", 1.75) if peer.name == "redis" and not one_key_a_commit else None
            title = f"memory a key, {context.many_keys:,} keys, {how} a commit"
            yield Row(title, "B", ours, Samples(peer.name, (figure,)), target)
        if not figures:
            yield Row(f"memory a key, {how} a commit", "B", ours)


def bytes_a_key(context: Context, peer: Peer, one_key_a_commit: bool) -> float:
    """Growth of the resident memory a key, from the first reply until all keys are stored.

    kvd's ordered index adds new keys lazily. A scan makes it add them, and the greater figure counts.
    """
    with context.fresh(peer) as server:
        before = server.rss_bytes()
        server.load(context.many_keys, one_key_a_commit)
        after = server.rss_bytes()
        if isinstance(peer, Kvd):
            server.try_once(Exchange(frame(["scan", "", None, 1]), None, 1))
            after = max(after, server.rss_bytes())
    return (after - before) / context.many_keys
