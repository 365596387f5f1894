"""The slow log: what it keeps of a frame, how many frames it keeps, and who may read it."""

import pytest

from kvd.protocol import messages
from kvd.store.authors import Author
from kvd.telemetry.slow_log import SHOWN_CHARACTERS, SlowFrame
from tests.harness.in_memory import InMemoryClient, connect, default_slow_log

ANN = Author(1000, 7, "ann")


@pytest.fixture
def client() -> InMemoryClient:
    """A connection of the daemon's own user."""
    return connect()


def slow(*requests: messages.AnyRequest) -> SlowFrame:
    """The slow log's entry for a frame of these requests, when every frame counts as slow."""
    client = connect()
    client.server.slow_log.configure(0, 1)
    client.run_with_position(requests, 0)
    (entry,) = client.server.slow_log.newest(1)
    return entry


def test_an_entry_has_time_duration_author_requests_and_keys() -> None:
    log = default_slow_log()
    log.add([("get", 2), ("set", 1)], "abcd", ANN, held_us=12_345, ended_us=10**15)
    (entry,) = log.newest(10)
    assert (entry.time, entry.held_us, entry.author) == (10**15, 12_345, ANN)
    assert entry.kinds == [("get", 2), ("set", 1)]
    assert (entry.keys, entry.more) == (["a", "b", "c", "d"], False)
    entry = slow(messages.Get("a"), messages.Set({"b": b"", "c": b""}), messages.Get("d"))
    assert entry.kinds == [("get", 2), ("set", 1)]
    assert (entry.keys, entry.more) == (["a", "b", "c", "d"], False)


def test_an_entry_has_few_and_short_keys() -> None:
    log = default_slow_log()
    log.add([("get_many", 1)], ["x" * 4096, *"abcdef"], ANN, held_us=1, ended_us=1)
    (entry,) = log.newest(1)
    assert (len(entry.keys), entry.more) == (4, True)
    assert entry.keys[0] == "x" * (SHOWN_CHARACTERS - 1) + "…"


@pytest.mark.parametrize(
    ("request_", "shown"),
    [
        (messages.Scan("user:", None, 10), ["user:"]),
        (messages.Scan("", None, 10), []),
        (messages.Watch("user:"), ["user:"]),
        (messages.Begin(), []),
        (messages.Commit({"w": b""}, {"r": 1}), ["w", "r"]),
    ],
)
def test_the_keys_that_a_request_names_are_shown(request_: messages.AnyRequest, shown: list[str]) -> None:
    assert slow(request_).keys == shown


def test_the_newest_entries_are_kept_newest_first() -> None:
    log = default_slow_log()
    log.configure(5, 3)
    for number in range(10):
        log.add([("ping", 1)], [], ANN, held_us=number, ended_us=number)
    assert [entry.held_us for entry in log.newest(10)] == [9, 8, 7]
    assert [entry.held_us for entry in log.newest(1)] == [9]
    log.configure(5, 2)
    assert [entry.held_us for entry in log.newest(10)] == [9, 8]
    log.reset()
    assert log.newest(10) == []


def test_no_frame_is_slow_when_no_entries_are_kept() -> None:
    log = default_slow_log()
    assert log.threshold_ns == 10_000_000
    log.configure(0, 0)
    assert log.threshold_ns > 10**18
    log.configure(0, 1)
    assert log.threshold_ns == 0


def test_each_slice_is_measured_by_itself(client: InMemoryClient) -> None:
    client.server.slow_log.configure(0, 100)
    client.batch(*[["scan", "", None, 10]] * 3)  # costly requests: they run in slices
    entries = client.server.slow_log.newest(100)
    assert [entry.kinds for entry in entries] == [[("scan", 1)]] * 3


def test_only_administrators_can_read_and_reset_the_slow_log(client: InMemoryClient) -> None:
    client.server.slow_log.add([("get", 1)], ["a"], ANN, held_us=20_000, ended_us=5)
    expected = [[5, 20_000, [1000, 7, "ann"], [["get", 1]], ["a"], False]]
    assert client.ask("slowlog", 10) == expected
    assert client.ask("slowlog", 10, True) == expected
    assert client.ask("slowlog", 10) == []
    for limit in (0, -1, 1_001, 2**40):
        assert client.code("slowlog", limit) == "bad_request"
    other = client.another(uid=54321)
    assert other.code("slowlog", 10) == "forbidden"


def test_sets_of_one_batch_are_measured_together(client: InMemoryClient) -> None:
    client.server.slow_log.configure(0, 100)
    client.set_each([messages.Set({"a": b""}), messages.Set({"b": b""})])
    (entry,) = client.server.slow_log.newest(100)
    assert (entry.kinds, entry.keys, entry.author) == ([("set", 2)], ["a", "b"], client.peer.author)
