"""A ring of links: transactions from several processes rotate the links, and it must stay one ring.

After the cycle test of FoundationDB's simulation: any lost update, skew or torn commit would break the ring, or split
it into smaller rings.
"""

from typing import TYPE_CHECKING

from tests.harness.scale import TIMES

if TYPE_CHECKING:
    from tests.harness.raw_peer import RawPeer
    from tests.histories.conftest import HistoryDaemon

NODES = 20
PROCESSES = 4
ROTATIONS = 500 * TIMES


def length_of_the_ring(connection: "RawPeer") -> int:
    """Return the number of steps from node 0 back to node 0, read at one instant."""
    [[items, _]] = connection.ask(["scan", "ring/", "ring0", 1_000])
    successor = {int(key.removeprefix("ring/")): int(value) for key, value, _ in items}
    assert set(successor) == set(successor.values()) == set(range(NODES))
    node, steps = successor[0], 1
    while node != 0:
        node, steps = successor[node], steps + 1
        assert steps <= NODES
    return steps


def test_concurrent_rotations_keep_one_ring(daemon: "HistoryDaemon") -> None:
    connection = daemon.connect()
    connection.ask(["set", {f"ring/{node}": b"%d" % ((node + 1) % NODES) for node in range(NODES)}])
    workers = [daemon.spawn("tests.histories.ring_worker", number, ROTATIONS, NODES) for number in range(PROCESSES)]
    checks = 0
    while any(worker.poll() is None for worker in workers):
        assert length_of_the_ring(connection) == NODES
        checks += 1
    assert [worker.wait() for worker in workers] == [0] * PROCESSES
    assert length_of_the_ring(connection) == NODES
    assert connection.ask(["get", "rotations"]) == [b"%d" % (PROCESSES * ROTATIONS)]
    print(f"{PROCESSES * ROTATIONS} rotations, checked {checks} times meanwhile")
    assert checks >= 10
