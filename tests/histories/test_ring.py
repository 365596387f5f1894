"""The ring: transactions from several processes rotate its links, and whatever they do it stays one ring.

After the cycle test of FoundationDB's simulation: any lost update, skew or torn commit would break the ring, or cut a
smaller one off.
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
    """How many steps lead from node 0 back to it, all of one instant."""
    [[items, _]] = connection.ask(["scan", "ring/", "ring0", 1_000])
    behind = {int(key.removeprefix("ring/")): int(value) for key, value, _ in items}
    assert set(behind) == set(behind.values()) == set(range(NODES))
    node, steps = behind[0], 1
    while node != 0:
        node, steps = behind[node], steps + 1
        assert steps <= NODES
    return steps


def test_the_ring_stays_one_ring(daemon: "HistoryDaemon") -> None:
    connection = daemon.connect()
    connection.ask(["set", {f"ring/{node}": b"%d" % ((node + 1) % NODES) for node in range(NODES)}])
    workers = [daemon.play("tests.histories.ring_worker", number, ROTATIONS, NODES) for number in range(PROCESSES)]
    looks = 0
    while any(worker.poll() is None for worker in workers):
        assert length_of_the_ring(connection) == NODES
        looks += 1
    assert [worker.wait() for worker in workers] == [0] * PROCESSES
    assert length_of_the_ring(connection) == NODES
    assert connection.ask(["get", "rotations"]) == [b"%d" % (PROCESSES * ROTATIONS)]
    print(f"{PROCESSES * ROTATIONS} rotations, looked at {looks} times meanwhile")
    assert looks >= 10
