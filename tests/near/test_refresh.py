"""Piggy-backed refreshes: which changed keys a near cache fetches along with other requests, how often, how many."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

import kv
from kv.near_cache.refresh import (
    FIRST_REFRESH_BUDGET,
    MAX_ENTRY_BYTES,
    MAX_KEYS,
    MAX_KEYS_PER_REQUEST,
    REFRESH_BUDGET,
    RefreshQueue,
)
from kv.near_cache.table import Table
from kvd.protocol.near_cache import FIRST_GENERATION, NOTED, NOTES, first_note, table_bytes

if TYPE_CHECKING:
    from tests.near.conftest import ReplaceableDaemon

SLOTS = 1 << 15
KEYS = [f"{number}" for number in range(MAX_KEYS_PER_REQUEST + 8)]


class Server:
    """A server's words, written as a server writes them, and the client's table over them."""

    def __init__(self) -> None:
        self.words = memoryview(bytearray(table_bytes(SLOTS))).cast("Q")
        self.table = Table(self.words, SLOTS, kv.NearCacheLimits())

    def keep(self, key: str, slot: int, value: bytes = b"x", budget: int = REFRESH_BUDGET) -> None:
        """Have a read fetch ``key``."""
        self.table.fill(key, [value, 1, slot, self.words[FIRST_GENERATION + slot], None])
        self.table.refresh_queue.add(key, value, FIRST_GENERATION + slot, budget)

    def change(self, slot: int) -> None:
        """Bump the generation of ``slot``, and note it."""
        self.words[FIRST_GENERATION + slot] += 1
        self.words[first_note(SLOTS) + self.words[NOTED] % NOTES] = slot
        self.words[NOTED] += 1

    def take(self, *excluded: str) -> list[str]:
        """Return the keys that a request would refresh now."""
        return self.table.take_due(excluded)


@pytest.fixture
def server() -> Server:
    server = Server()
    for slot, key in enumerate(KEYS):
        server.keep(key, slot)
    assert server.take() == []
    return server


def test_a_changed_key_is_refreshed_once(server: Server) -> None:
    server.change(3)
    assert server.take() == ["3"]
    assert server.take() == []


def test_a_key_that_is_fetched_anyway_or_was_fetched_since_is_not_refreshed(server: Server) -> None:
    server.change(3)
    server.change(4)
    server.keep("4", 4)
    assert server.take("3") == []


def test_a_request_refreshes_a_limited_number_of_keys_and_the_next_one_the_others(server: Server) -> None:
    for slot in range(len(KEYS)):
        server.change(slot)
    first = server.take()
    assert len(first) == MAX_KEYS_PER_REQUEST
    assert sorted(first + server.take()) == sorted(KEYS)


def test_notes_are_read_across_the_end_of_the_ring_but_not_when_overwritten(server: Server) -> None:
    for _ in range(NOTES - 1):
        server.change(1_000)
    server.take()
    server.change(3)
    server.change(4)
    assert sorted(server.take()) == ["3", "4"]
    server.change(5)
    for _ in range(NOTES):
        server.change(1_000)
    assert server.take() == []


@pytest.mark.parametrize("budget", [FIRST_REFRESH_BUDGET, REFRESH_BUDGET])
def test_a_key_that_is_not_read_is_refreshed_until_its_budget_is_used(server: Server, budget: int) -> None:
    server.keep("3", 3, budget=budget)
    taken = 0
    for _ in range(2 * REFRESH_BUDGET):
        server.change(3)
        taken += len(server.take())
    assert taken == budget
    assert not server.table.refresh_queue.has("3", FIRST_GENERATION + 3)


def test_large_values_are_not_queued_and_the_queue_is_bounded() -> None:
    queue = RefreshQueue(SLOTS)
    queue.add("large", b"x" * MAX_ENTRY_BYTES, 8, REFRESH_BUDGET)
    assert len(queue) == 0
    for number in range(MAX_KEYS + 100):
        queue.add(f"{number}", b"", number, REFRESH_BUDGET)
    assert len(queue) == MAX_KEYS
    assert not queue.has("99", 99)
    assert queue.has("100", 100)


# ---------------------------------------------------------------------- with a daemon


@pytest.fixture
def filled(near: kv.NearClient, other: kv.Client) -> kv.NearClient:
    """A client that has read ``a`` to ``d``."""
    other.set_many(dict.fromkeys("abcd", b"1"))
    for key in "abcd":
        assert near.get(key) == b"1"
    near.get("other")
    return near


def test_a_miss_refreshes_changed_keys(filled: kv.NearClient, other: kv.Client) -> None:
    other.set("a", b"2")
    other.delete("b")
    before = filled.near_cache.stats()
    assert filled.get("new") is None
    assert (filled.get("a"), filled.get("b"), filled.get("c")) == (b"2", None, b"1")
    after = filled.near_cache.stats()
    assert after.refreshed - before.refreshed == 2
    assert (after.hits - before.hits, after.refetches - before.refetches) == (3, 0)


def test_a_write_refreshes_its_own_keys_and_changed_keys(filled: kv.NearClient, other: kv.Client) -> None:
    other.set("b", b"2")
    before = filled.near_cache.stats()
    filled.set("a", b"3")
    assert (filled.get("a"), filled.get("b")) == (b"3", b"2")
    assert filled.increment("n") == 1
    filled.delete("a")
    assert filled.get("a") is None
    after = filled.near_cache.stats()
    assert after.refetches == before.refetches
    assert after.refreshed - before.refreshed == 3


def test_a_refused_write_raises_and_still_refreshes_changed_keys(filled: kv.NearClient, other: kv.Client) -> None:
    other.set("b", b"2")
    with pytest.raises(kv.Conflict):
        filled.compare_and_set("a", b"9", 1 << 40)
    with pytest.raises(kv.NotFound):
        filled.delete("a", "nothing")
    assert (filled.get("a"), filled.get("b")) == (b"1", b"2")


def test_a_value_that_has_become_large_is_refreshed_once(filled: kv.NearClient, other: kv.Client) -> None:
    for number in range(2):
        other.set("a", b"%d" % number * 10_000)
        filled.get(f"new {number}")
    assert filled.near_cache.stats().refreshed == 1
    assert filled.get("a") == b"1" * 10_000


def test_keys_whose_refresh_is_refused_leave_the_queue_and_the_read_is_answered(
    filled: kv.NearClient, other: kv.Client
) -> None:
    """One of them cannot be fetched: here because it is not a valid key."""
    table = filled.near_cache.table
    word = FIRST_GENERATION + table.slots - 1
    table._keep("", (b"", word, -1, None))
    table.refresh_queue._keys[word], table.refresh_queue._budgets[word], table.refresh_queue._due[word] = "", 9, None
    other.set("a", b"2")
    assert filled.get("new") is None
    assert not table.refresh_queue.has("", word)
    assert filled.get("a") == b"2"
    assert filled.near_cache.stats().refreshed == 0


def test_a_forked_child_has_an_empty_queue(filled: kv.NearClient) -> None:
    assert len(filled.near_cache.table.refresh_queue)
    child = os.fork()
    if child == 0:
        os._exit(len(filled.near_cache.table.refresh_queue))
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("sync", ["always", "never"])
def test_other_keys_are_not_refreshed_where_reads_wait_for_the_disk(
    start: "Callable[..., ReplaceableDaemon]", sync: str
) -> None:
    daemon = start(durable=True, sync=sync)
    with daemon.near() as db, daemon.client() as writer:
        db.get("a")
        writer.set("a", b"1")
        db.get("b")
        assert db.get("a") == b"1"
        stats = db.near_cache.stats()
        assert (stats.refreshed, stats.refetches) == ((0, 1) if sync == "always" else (1, 0))
