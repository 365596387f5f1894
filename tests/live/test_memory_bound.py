"""The memory of a real daemon that is filled to its limit: its bounds, as the kernel measures them."""

import pathlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.raw_peer import frame

if TYPE_CHECKING:
    from tests.harness.daemon import Daemon
    from tests.harness.raw_peer import RawPeer

MIB = 1024 * 1024
MAX_BYTES = 64 * MIB
# The bound for the process in docs/memory.md.
BOUND_BYTES = MAX_BYTES * 3 // 2 + 64 * MIB
LIMIT = f"memory.max_bytes = {MAX_BYTES}\n"
EVICTING = LIMIT + '[[prefix]]\nprefix = "c/"\nevict = true\n'
# The size of a value, and the number of values in one request.
SIZES = [(64, 1_000), (1024, 1_000), (MIB, 8)]
sized = pytest.mark.parametrize(("size", "count"), SIZES, ids=["64B", "1KiB", "1MiB"])


def max_resident(daemon: "Daemon") -> int:
    """The peak resident memory, as the kernel counts it."""
    with open(f"/proc/{daemon.process.pid}/status", encoding="ascii") as file:
        line = next(line for line in file if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def batches(prefix: str, size: int, count: int) -> Iterator[dict[str, bytes]]:
    """Yield new keys without end. No two values are the same object or the same bytes."""
    number = 0
    while True:
        yield {f"{prefix}{n:08d}": n.to_bytes(8, "big") * (size // 8) for n in range(number, number + count)}
        number += count


def is_full(reply: Any) -> bool:  # noqa: ANN401 - any reply
    return isinstance(reply, dict) and reply["error"] == "out_of_memory"


def metrics(peer: "RawPeer") -> dict[str, int]:
    return dict(peer.ask(["metrics"])[0])


@sized
def test_without_eviction_a_write_over_the_limit_is_an_error_and_has_no_effect(
    start: "Callable[..., Daemon]", size: int, count: int
) -> None:
    daemon = start(LIMIT)
    peer = daemon.connect()
    for entries in batches("k", size, count):
        before = metrics(peer)
        [reply] = peer.ask(["set", entries])
        if is_full(reply):
            break
    after = metrics(peer)
    same = ("keys_stored", "value_bytes_stored", "version")
    assert [after[name] for name in same] == [before[name] for name in same]
    assert before["memory_bytes"] > MAX_BYTES - 2 * count * (size + 1_000), (
        "memory was full, and the error did not come early"
    )
    assert after["memory_bytes"] <= MAX_BYTES
    assert peer.ask(["get_many", list(entries)]) == [[None] * count], "no entry of it was written"
    assert peer.ask(["get", "k00000000"]) == [bytes(size // 8 * 8)], "reads still work"
    assert is_full(peer.ask(["set", entries])[0])
    deleted = [f"k{n:08d}" for n in range(2 * count)]
    assert peer.ask(["delete", deleted])[0][1] == 2 * count, "deletions still work"
    assert isinstance(peer.ask(["set", entries])[0], int), "then there is memory for it again"
    print(max_resident(daemon) / 2**20)
    assert max_resident(daemon) <= BOUND_BYTES


@sized
def test_only_evictable_keys_are_evicted(start: "Callable[..., Daemon]", size: int, count: int) -> None:
    daemon = start(EVICTING)
    peer = daemon.connect()
    kept = next(batches("kept/", size, count))
    peer.ask(["set", kept])
    written = 0
    for entries in batches("c/", size, count):
        [version] = peer.ask(["set", entries])
        assert isinstance(version, int), version
        written += count * (size + 200)
        if written > 2 * MAX_BYTES:
            break
    after = metrics(peer)
    assert after["evicted_keys"] > 0
    assert after["memory_bytes"] <= MAX_BYTES
    assert peer.ask(["get_many", list(kept)]) == [list(kept.values())]
    assert peer.ask(["get_many", list(entries)]) == [list(entries.values())], "the newest keys are present"
    print(max_resident(daemon) / 2**20)
    assert max_resident(daemon) <= BOUND_BYTES


@pytest.mark.parametrize("sync", ["always", "never"])
def test_pending_log_writes_count_as_memory(start: "Callable[..., Daemon]", tmp_path: pathlib.Path, sync: str) -> None:
    """Four clients send frame after frame without waiting for each reply."""
    daemon = start(f'data.dir = "{tmp_path}/data"\ndata.sync = "{sync}"\n' + EVICTING)
    peers = [daemon.connect() for _ in range(4)]
    written = 0
    new_entries = batches("c/", 1024, 250)
    while written < 3 * MAX_BYTES:
        for peer in peers:
            peer.send(b"".join(frame(["set", next(new_entries)]) for _ in range(2)))
            written += 2 * 250 * (1024 + 200)
        for peer in peers:
            for _ in range(2):
                [version] = peer.receive()
                assert isinstance(version, int), version
    assert metrics(peers[0])["evicted_keys"] > 0
    print(max_resident(daemon) / 2**20)
    assert max_resident(daemon) <= BOUND_BYTES


@sized
def test_pruning_history_frees_memory_for_new_versions(start: "Callable[..., Daemon]", size: int, count: int) -> None:
    daemon = start(LIMIT + "history.max_bytes = 1099511627776\n")
    peer = daemon.connect()
    keys = list(next(batches("k", size, count)))
    written = 0
    while written < 3 * MAX_BYTES:
        value = written.to_bytes(8, "big") * (size // 8)
        [version] = peer.ask(["set", dict.fromkeys(keys, value)])
        assert isinstance(version, int), version
        written += count * (size + 112)
    after = metrics(peer)
    assert after["memory_bytes"] <= MAX_BYTES
    assert after["keys_stored"] == count
    assert peer.ask(["get_many", keys]) == [[value] * count]
    print(max_resident(daemon) / 2**20)
    assert max_resident(daemon) <= BOUND_BYTES
