"""Clients that never stop asking while the service is restarted: ``load.py RESTARTS``.

Prints how many requests there were and how many of them failed. Each restart happens amid requests, and the next only
when every client has been answered by the daemon that came of it.
"""

import ctypes
import multiprocessing
import subprocess
import sys
import time
from multiprocessing.sharedctypes import Synchronized

import kv

ADDRESS = "/run/kvd/kvd.sock"
CLIENTS = 4
ANSWERS_BETWEEN = 100
DEADLINE_S = 120

Counter = Synchronized  # of a ctypes.c_long


def ask(name: str, answered: Counter, failed: Counter, stop: Counter) -> None:
    """Set and get, by turns, until told to stop."""
    with kv.connect(ADDRESS, timeout=DEADLINE_S) as client:
        while not stop.value:
            try:
                if answered.value % 2:
                    client.get(name)
                else:
                    client.set(name, b"value")
                answered.value += 1
            except kv.KvdError as error:
                failed.value += 1
                print(f"{name}: {error!r}", file=sys.stderr)


def wait_for_answers(counters: list[Counter]) -> None:
    """Return when every client has been answered so many times more."""
    goals = [counter.value + ANSWERS_BETWEEN for counter in counters]
    deadline = time.monotonic() + DEADLINE_S
    while any(counter.value < goal for counter, goal in zip(counters, goals, strict=True)):
        if time.monotonic() > deadline:
            raise TimeoutError("the clients are not answered any more")
        time.sleep(0.01)


def main(restarts: int) -> None:
    """Start the clients, restart the service, count."""
    stop = multiprocessing.Value(ctypes.c_long, 0)
    answered = [multiprocessing.Value(ctypes.c_long, 0) for _ in range(CLIENTS)]
    failed = [multiprocessing.Value(ctypes.c_long, 0) for _ in range(CLIENTS)]
    clients = [
        multiprocessing.Process(target=ask, args=(f"client{number}", answered[number], failed[number], stop))
        for number in range(CLIENTS)
    ]
    for client in clients:
        client.start()
    try:
        wait_for_answers(answered)
        for _ in range(restarts):
            subprocess.run(["systemctl", "restart", "kvd.service"], check=True)  # noqa: S607 (wherever it is)
            # So often in so short a time is what systemd takes for a failure.
            subprocess.run(["systemctl", "reset-failed", "kvd.service"], check=True)  # noqa: S607
            wait_for_answers(answered)
    finally:
        stop.value = 1
        for client in clients:
            client.join(DEADLINE_S)
    failures = sum(counter.value for counter in failed)
    print(f"restarts={restarts} requests={failures + sum(counter.value for counter in answered)} failed={failures}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
