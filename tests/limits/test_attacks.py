"""Hostile clients send the worst inputs for a while; meanwhile another client's reads and writes are right.

How long its pings wait is measured by `make bench BENCHARGS='--only worst'`, and not here.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from bench.worst_inputs import WORST
from tests.harness.daemon import new_folders
from tests.harness.raw_peer import RawPeer, frame
from tests.harness.scale import TIMES
from tests.harness.waiting import DEADLINE_S
from tests.harness.watched_daemon import WatchedDaemon

# With KVD_TEST_SCALE=10, each attack takes ten seconds.
ATTACK_S = 1.0 * TIMES
MANY = 16
KEYS = 1_000
TOKENS = {"reader": "the-token-of-one-who-may-read-only", "stranger": "the-token-of-one-without-any-right"}
SETTINGS = """
[[access]]
prefix = ""
rights = ["read", "watch"]
token = "reader"
"""
Attack = Callable[[WatchedDaemon, random.Random, float], int]


@pytest.fixture(scope="module")
def daemon() -> Iterator[WatchedDaemon]:
    """A daemon with a user who may read, one who may do nothing, and keys to read."""
    with new_folders() as new_folder:
        folder = new_folder()
        tokens = folder / "tokens"
        tokens.write_text("".join(f"{name} {token}\n" for name, token in TOKENS.items()))
        tokens.chmod(0o600)
        daemon = WatchedDaemon(folder, f'{SETTINGS}\n[listen]\ntcp = ["127.0.0.1:0"]\ntoken_file = "{tokens}"\n')
        daemon.tcp_port = int(str(daemon.status()["listening"]).rpartition(":")[2])
        daemon.ask(["set", {f"w{number:015d}": b"v" * 64 for number in range(KEYS)}])
        daemon.ask(["set", {"big": b"x" * 1_000_000}])
        yield daemon
        daemon.see_it_end()


def frames_of(chosen: random.Random) -> Iterator[bytes]:
    """The worst inputs in random order, without end."""
    inputs = [each for each in WORST if each.kind not in {"watch", "backup", "attach"}]
    frames = [frame(*each.frame(KEYS, 100_000)) for each in inputs]
    while True:
        yield chosen.choice(frames)


def attack_with_token(name: str) -> Attack:
    """The attack of a user: frames, each answered, on one connection."""

    def attack(daemon: WatchedDaemon, chosen: random.Random, end: float) -> int:
        sent = 0
        with RawPeer.tcp(daemon.tcp_port) as peer:
            assert peer.ask(["hello", 1, "test", TOKENS[name]])[0][0] == 1
            for data in frames_of(chosen):
                peer.send(data)
                assert peer.receive() is not None
                sent += 1
                if time.monotonic() > end:
                    return sent
        raise AssertionError

    return attack


def attack_as_stranger(daemon: WatchedDaemon, chosen: random.Random, end: float) -> int:
    """First frames that do not authenticate, large, cut or no frames at all: each on a connection of its own."""
    firsts = [
        frame(["hello", 1, "x", "wrong"], *[["exposition"]] * 300),
        frame(*[["status"]] * 500),
        frame(*[["scan", "", None, 1_000]] * 200),
        b"\x00\x00\x0f\xff" + b"\x91" * 4_095,
        b"\x00\xff\xff\xff" + b"x" * 10_000,
        b"\x00\x00\x10",
        b"GET / HTTP/1.1\r\n\r\n" * 100,
    ]
    sent = 0
    while time.monotonic() < end:
        with RawPeer.tcp(daemon.tcp_port) as peer:
            try:
                peer.send(chosen.choice(firsts))
                if chosen.random() < 0.5:
                    peer.socket.shutdown(1)
                    peer.rest()
            except OSError:  # closed already
                pass
            sent += 1
    return sent


ATTACKS: dict[str, Attack] = {
    "a user who may read": attack_with_token("reader"),
    "a user without rights": attack_with_token("stranger"),
    "a stranger": attack_as_stranger,
}


@pytest.mark.parametrize("connections", [1, MANY])
@pytest.mark.parametrize("attacker", ATTACKS)
def test_another_clients_reads_are_right_during_an_attack(
    daemon: WatchedDaemon, attacker: str, connections: int
) -> None:
    end = time.monotonic() + ATTACK_S
    sent: list[int] = []

    def attack(seed: int) -> None:
        sent.append(ATTACKS[attacker](daemon, random.Random(seed), end))  # noqa: S311 - to be repeatable

    threads = [threading.Thread(target=attack, args=(seed,)) for seed in range(connections)]
    for thread in threads:
        thread.start()
    rounds = use(daemon, end)
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    assert len(sent) == connections, "no attacker met an error"
    assert min(sent) > 0
    assert rounds > 0
    values = daemon.ask(["get_many", [f"w{number:015d}" for number in range(KEYS)]])[0]
    assert values == [b"v" * 64] * KEYS, "nothing was changed by one who may not"


def use(daemon: WatchedDaemon, end: float) -> int:
    """Write and read, each value as it was written, until the end; how many times."""
    rounds = 0
    with RawPeer.unix(daemon.path) as peer:
        while time.monotonic() < end:
            rounds += 1
            value = b"%d" % rounds
            (version,) = peer.ask(["set", {"own/a": value, "own/b": value}])
            assert peer.ask(["get", "own/a"], ["get_many", ["own/a", "own/b"]]) == [value, [value, value]]
            ((page, after),) = peer.ask(["scan", "own/", "own0", 10])
            assert (page, after) == ([["own/a", value, version], ["own/b", value, version]], None)
            assert peer.ask(["ping"]) == [True]
    return rounds
