"""Write to a server at a steady pace until SIGTERM, and hold snapshots meanwhile.

`python -m bench.paced_writer SOCKET SNAPSHOTS` is a process of its own. Every 10 ms it sends a frame of 64 sets, each a
commit of its own. Before that it begins the snapshots on the same connection, with a commit between two snapshots.
"""

import sys
import time
from pathlib import Path

from bench.data import chosen
from bench.exchange import Connection
from bench.peers.kvd import exchange
from bench.pinger import Stop

SETS = 64
PACE_S = 0.010


def main(path: str, snapshots: str) -> None:
    """Write until SIGTERM, then print the number of sets."""
    stop = Stop()
    items = chosen(SETS, 100_000)
    sets = exchange(*(["set", {key: value}] for key, value in items.items()))
    count = 0
    with Connection(Path(path)) as connection:
        for key, value in list(items.items()) * (int(snapshots) // SETS + 1):
            if int(snapshots):
                connection.call(exchange(["set", {key: value}], ["begin"]))
        print("ready", flush=True)
        while not stop.requested:
            connection.call(sets)
            count += SETS
            time.sleep(PACE_S)
    print(count, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
