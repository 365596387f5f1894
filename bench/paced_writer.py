"""Write to a server at a steady pace until SIGTERM, holding snapshots if asked to.

`python -m bench.paced_writer SOCKET SNAPSHOTS`, a process of its own: each few milliseconds a frame of 64 sets, each a
commit of its own. The snapshots are begun first, on the same connection, a commit between each and the next.
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
    """Write, and say how much at the end."""
    stop = Stop()
    items = chosen(SETS, 100_000)
    sets = exchange(*(["set", {key: value}] for key, value in items.items()))
    written = 0
    with Connection(Path(path)) as connection:
        for key, value in list(items.items()) * (int(snapshots) // SETS + 1):
            if int(snapshots):
                connection.call(exchange(["set", {key: value}], ["begin"]))
        print("ready", flush=True)
        while not stop.asked:
            connection.call(sets)
            written += SETS
            time.sleep(PACE_S)
    print(written, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
