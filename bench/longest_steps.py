"""The longest callback of the daemon's loop while it does some work, by processor time.

    with StepTimer(folder, checkout, configuration) as timer:
        step = timer.longest(lambda: connection.call(exchange))

`python -m bench.longest_steps [--checkout DIR] [--keys N] [GROUP…]` prints it for the requests that are known to be the
worst of their kind, in a store of a million keys.
"""

import argparse
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from bench.data import batches, key
from bench.errors import BenchError
from bench.exchange import Connection, Exchange
from bench.peers.kvd import frame
from bench.process import Child, clean_environment

# How long after the work its steps are still looked for.
SETTLE_S = 0.2
_PROGRAM = Path(__file__).with_name("steps_server.py")
_START_S = 60.0
K = 65_000
VALUE = b"x" * 64


class Step(NamedTuple):
    """One callback: its processor time, how much of that was garbage collection, and its name."""

    ms: float
    collected_ms: float
    name: str


NO_STEP = Step(0.0, 0.0, "")


class StepTimer:
    """A daemon of `checkout` whose loop is timed; it serves the socket at `socket`."""

    def __init__(self, folder: Path, checkout: Path, configuration: str = "") -> None:
        self._folder = folder
        self._path = folder / "steps"
        self._path.touch()
        self._read = 0
        self.socket = folder / "kvd.sock"
        self.configure(configuration)
        env = clean_environment() | {"XDG_CONFIG_HOME": str(folder), "XDG_RUNTIME_DIR": str(folder)}
        argv = [checkout / ".venv/bin/python", _PROGRAM, self._path, "serve", "--config", folder / "kvd.toml"]
        self._child = Child(list(map(str, argv)), folder / "log", env | {"PYTHONPATH": str(checkout)}, cwd=checkout)
        self._wait()

    def __enter__(self) -> "StepTimer":
        return self

    def __exit__(self, *_: object) -> None:
        self._child.stop()

    def configure(self, configuration: str) -> None:
        """Write the configuration; a running daemon reads it at the next reload."""
        (self._folder / "kvd.toml").write_text(f'[listen]\nsocket = "{self.socket}"\n{configuration}')

    def longest(self, work: Callable[[], object], settle_s: float = SETTLE_S) -> Step:
        """Do `work`, and return the longest step that the daemon has made for it."""
        self._new_steps()
        work()
        time.sleep(settle_s)
        return max(self._new_steps(), default=NO_STEP)

    def _new_steps(self) -> list[Step]:
        lines = self._path.read_text().splitlines()[self._read :]
        self._read += len(lines)
        parts = [line.split(maxsplit=2) for line in lines]
        return [Step(float(ms), float(collected_ms), name) for ms, collected_ms, name in parts]

    def _wait(self) -> None:
        deadline = time.monotonic() + _START_S
        while True:
            try:
                Connection(self.socket).close()
                return
            except OSError:
                if self._child.ended() or time.monotonic() > deadline:
                    raise BenchError(f"the daemon did not start: {self._child.output()[-800:]}") from None
                time.sleep(0.05)


class Client:
    """One connection to the daemon of `timer`."""

    def __init__(self, timer: StepTimer) -> None:
        self.connection = Connection(timer.socket)

    def ask(self, *requests: list[Any]) -> Any:  # noqa: ANN401 (whatever the server replies)
        """Send one frame; return the replies, or the error to one of them."""
        reply = msgspec.msgpack.decode(self.connection.call(Exchange(frame(*requests), None, len(requests))))
        failed = (
            [each for each in reply if isinstance(each, dict) and "error" in each] if isinstance(reply, list) else []
        )
        return failed[0] if failed else reply

    def load(self, count: int) -> None:
        """Set keys, a thousand in each set."""
        for entries in batches(count, 1_000):
            self.ask(["set", entries])

    def change(self, count: int) -> None:
        """Change one key this number of times."""
        for begin in range(0, count, 64):
            self.ask(*(["set", {"zz": b"%d" % number}] for number in range(begin, min(begin + 64, count))))


Work = Callable[[], object]
Phases = Iterator[tuple[str, Work]]


def reads(timer: StepTimer, client: Client, count: int) -> Phases:
    """Reads of many keys, of the present and of a snapshot."""
    keys = _some(count)
    ask = client.ask
    yield "get_many of 65,000", lambda: ask(["get_many", keys])
    yield "fetch of 65,000", lambda: ask(["fetch", keys])
    yield "ttl of 65,000", lambda: ask(["ttl", keys])
    (snapshot,) = ask(["begin"])
    yield "get_many of 65,000 at a snapshot", lambda: ask(["get_many", keys, snapshot])
    yield "scan of 10,000 at a snapshot", lambda: ask(["scan", "", None, 10_000, snapshot])
    versions = dict(zip(keys, (each[1] for each in ask(["fetch", keys])[0]), strict=True))
    yield "commit that read 65,000", lambda: ask(["commit", {"a": b"1"}, versions])
    ranges = [(each, each + "~") for each in keys]
    yield "commit of 65,000 ranges, few commits since", lambda: ask(["commit", {"a": b"1"}, None, ranges, snapshot])
    client.change(5_000)
    yield (
        "commit of one range of all keys, 5,000 commits since",
        lambda: ask(["commit", {"a": b"1"}, None, [("key:", "key:~")], snapshot]),
    )
    yield "commit of 65,000 ranges, 5,000 commits since", lambda: ask(["commit", {"a": b"1"}, None, ranges, snapshot])


def writes(timer: StepTimer, client: Client, count: int) -> Phases:
    """Writes of many keys, each one commit."""
    keys = _some(count)
    ask = client.ask
    yield "set of 65,000 that are there", lambda: ask(["set", dict.fromkeys(keys, VALUE)])
    yield "set of 65,000 new", lambda: ask(["set", {f"n{random.random()}": VALUE for _ in range(K)}])  # noqa: S311
    yield "set of 65,000 with a ttl", lambda: ask(["set", dict.fromkeys(keys, VALUE), {"ttl": 3_600_000}])
    yield "touch of 65,000", lambda: ask(["touch", keys, 7_200_000])
    halves = {each: (VALUE if number % 2 else None) for number, each in enumerate(keys)}
    yield "commit of 65,000 writes, half deletes", lambda: ask(["commit", halves])
    yield "delete of 65,000", lambda: ask(["delete", keys, True])
    yield "65,000 sets in a frame", lambda: ask(*(["set", {each: VALUE}] for each in keys))
    owner = Client(timer)
    yield "set of 65,000 ephemeral keys", lambda: owner.ask(["set", dict.fromkeys(keys, b"x"), {"ephemeral": True}])
    yield "their connection ends", owner.connection.close
    yield "65,000 keys with 1 ms to live", lambda: ask(["set", dict.fromkeys(keys, b"x"), {"ttl": 1}])
    yield "first set after it all", lambda: ask(["set", {"a": b"1"}])


def past(timer: StepTimer, client: Client, count: int) -> Phases:
    """A key of very many versions, and very many snapshots."""
    ask = client.ask
    (snapshot,) = ask(["begin"])
    client.change(200_000)
    yield "get_many at a snapshot 200,000 versions back", lambda: ask(["get_many", ["zz"], snapshot])
    yield "history before it", lambda: ask(["history", "zz", 10, snapshot + 1_000])
    yield "scan at it", lambda: ask(["scan", "z", None, 10, snapshot])
    yield "end of the snapshot", lambda: ask(["end", snapshot])


def rules(timer: StepTimer, client: Client, count: int) -> Phases:
    """A reload that changes what holds for all keys."""

    def reload(configuration: str) -> Work:
        timer.configure(configuration)
        return lambda: (client.ask(["reload"]), time.sleep(8))

    yield "reload: a quota over all keys", reload('[[prefix]]\nprefix = "key"\nmax_keys = 2000000\n')
    evicting = '[[prefix]]\nprefix = ""\nevict = true\n'
    yield "reload: eviction of all keys", reload(evicting)
    yield "reload: half of the memory", reload(f"[memory]\nmax_bytes = {count * 150}\n{evicting}")
    yield "first set after it", lambda: client.ask(["set", {"b": b"x"}])
    new = {f"q{number}": VALUE for number in range(K)}
    yield "set of 65,000 new in a full cache", lambda: client.ask(["set", new])
    yield "set of one value of 8 MB in it", lambda: client.ask(["set", {"b": b"x" * 8_000_000}])
    yield "reload: no rules", reload("")


GROUPS = {group.__name__: group for group in (reads, writes, past, rules)}


@contextmanager
def _daemon(checkout: Path) -> Iterator[StepTimer]:
    folder = Path(tempfile.mkdtemp())
    try:
        with StepTimer(folder, checkout) as timer:
            yield timer
    finally:
        shutil.rmtree(folder)


def _some(count: int) -> list[str]:
    return [key(number) for number in random.Random(5).sample(range(count), min(K, count))]  # noqa: S311


def main() -> None:
    """Print the longest step of each phase, in milliseconds."""
    parser = argparse.ArgumentParser(prog="python -m bench.longest_steps")
    parser.add_argument("--checkout", type=Path, default=Path.cwd())
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("groups", nargs="*", default=list(GROUPS))
    chosen = parser.parse_args()
    os.environ.pop("KVD_SOCKET", None)
    for name in chosen.groups:
        with _daemon(chosen.checkout.resolve()) as timer:
            client = Client(timer)
            if name != "past":
                client.load(chosen.keys)
            for title, work in GROUPS[name](timer, client, chosen.keys):
                step = timer.longest(work)
                print(f"{title:56} {step.ms:9.1f}  {step.name} (gc {step.collected_ms:.1f})", flush=True)


if __name__ == "__main__":
    main()
