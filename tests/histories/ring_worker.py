"""One process of the ring test: swaps neighbours in a ring of links, each swap a transaction.

`python -m tests.histories.ring_worker SOCKET NUMBER COUNT NODES`. Key `ring/N` holds the number of the node after N.
"""

import random
import sys

import kv


def rotate(txn: kv.Transaction, node: int) -> None:
    """Change a → b → c → d into a → c → b → d: the three links are read on the way."""
    b = int(txn[f"ring/{node}"])
    c = int(txn[f"ring/{b}"])
    d = int(txn[f"ring/{c}"])
    txn[f"ring/{node}"], txn[f"ring/{c}"], txn[f"ring/{b}"] = b"%d" % c, b"%d" % b, b"%d" % d


def main(path: str, number: str, count: str, nodes: str) -> None:
    """Run ``count`` rotations."""
    chance = random.Random(int(number))  # noqa: S311 - a workload
    with kv.connect(path, timeout=30) as db:
        for _ in range(int(count)):
            node = chance.randrange(int(nodes))
            db.run(lambda txn, node=node: rotate(txn, node), attempts=1_000)  # type: ignore[misc]
            db.increment("rotations")


if __name__ == "__main__":
    main(*sys.argv[1:])
