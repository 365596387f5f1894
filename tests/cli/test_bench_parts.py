"""The parts with which ``kv bench`` computes: the histogram, the choice of keys, the verdict."""

import math
import os
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kv.cli.bench.choices import uniform, zipf
from kv.cli.bench.histogram import Histogram, bucket, highest_in
from kv.cli.bench.processor import cores, daemon_pid, used_s, verdict
from kv.cli.bench.tally import Tally

VALUES = st.lists(st.integers(0, 1 << 39), min_size=1, max_size=200)


@settings(deadline=None)
@given(st.integers(0, (1 << 40) - 1))
def test_a_bucket_is_at_most_a_64th_of_its_values_wide(value: int) -> None:
    index = bucket(value)
    highest = highest_in(index)
    assert value <= highest <= value + value // 64
    assert bucket(highest) == index
    assert bucket(highest + 1) == index + 1


@settings(deadline=None)
@given(VALUES, st.floats(0.1, 100))
def test_a_percentile_is_that_of_the_sorted_values(values: list[int], percent: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    exact = sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]
    assert exact <= histogram.percentile(percent) <= exact + exact // 64
    assert (histogram.total, histogram.max, histogram.percentile(100)) == (len(values), max(values), max(values))


@settings(deadline=None)
@given(VALUES, VALUES)
def test_two_histograms_add_up(some: list[int], others: list[int]) -> None:
    one, two, together = Histogram(), Histogram(), Histogram()
    for value in some:
        one.record(value)
        together.record(value)
    for value in others:
        two.record(value, 3)
        together.record(value, 3)
    one.add(two.filled(), two.max)
    assert (list(one.filled()), one.max) == (list(together.filled()), together.max)


def test_times_beyond_the_last_bucket_are_counted() -> None:
    histogram = Histogram()
    for value in (1 << 62, (1 << 40) - 1, -5):
        histogram.record(value)
    assert (histogram.total, histogram.max, histogram.percentile(1)) == (3, (1 << 40) - 1, 0)


def test_powers_show_every_value_once() -> None:
    histogram = Histogram()
    for value in (1, 100, 127, 128, 1000):
        histogram.record(value)
    assert histogram.by_powers() == [
        (1, 1), (3, 0), (7, 0), (15, 0), (31, 0), (63, 0), (127, 2), (255, 1), (511, 0), (1023, 1),
    ]  # fmt: skip
    assert Histogram().by_powers() == []
    assert Histogram().percentile(99) == 0


@pytest.mark.parametrize("keys", [1, 2, 3, 100, 12_345])
@pytest.mark.parametrize("exponent", [0.5, 0.99, 1.5])
def test_zipf_draws_each_rank_as_often_as_it_should(keys: int, exponent: float) -> None:
    draws = 50_000
    draw = zipf(keys, Random(1), exponent)  # noqa: S311 (work, no secret)
    counts = [0] * keys
    for _ in range(draws):
        counts[draw()] += 1
    counts.sort(reverse=True)
    total = sum(rank**-exponent for rank in range(1, keys + 1))
    for rank in range(1, min(keys, 3) + 1):
        expected = draws * rank**-exponent / total
        assert counts[rank - 1] == pytest.approx(expected, abs=5 * math.sqrt(expected) + 2)


def test_uniform_draws_all_keys_alike() -> None:
    draw = uniform(10, Random(1).random)  # noqa: S311 (work, no secret)
    counts = [0] * 10
    for _ in range(10_000):
        counts[draw()] += 1
    assert all(800 < count < 1200 for count in counts)


def test_tallies_of_processes_side_by_side_add_up() -> None:
    parts = [Tally(), Tally()]
    for number, tally in enumerate(parts, 1):
        tally.succeeded("get")
        tally.failed("too_large", number)
        tally.histogram.record(1_000 * number)
        tally.seconds, tally.processor_s = float(number), 0.5
        tally.near_cache = {"hits": number}
    together = Tally()
    for tally in parts:
        together.add(tally.report())
    assert (together.operations, together.errors, together.near_cache) == ({"get": 2}, {"too_large": 3}, {"hits": 3})
    assert (together.seconds, together.processor_s, together.done) == (2.0, 1.0, 5)
    assert (together.histogram.total, together.histogram.max) == (2, 2_000)


@pytest.mark.parametrize(
    ("clients", "daemon", "processes", "near", "limit"),
    [
        (0.99, 0.5, 1, False, "clients"), (0.4, 0.99, 1, False, "daemon"), (0.95, 0.97, 1, False, "both"),
        (0.3, 0.3, 1, False, "waiting"), (0.9, None, 1, False, "unknown"), (0.99, 0.01, 1, True, "clients"),
        (0.99, None, 1, True, "clients"), (0.3, 0.99, 1, True, "daemon"), (1.3, 0.7, 4, False, "machine"),
    ],
)  # fmt: skip
def test_the_verdict_names_the_limit(
    monkeypatch: pytest.MonkeyPatch, clients: float, daemon: float | None, processes: int, near: bool, limit: str
) -> None:
    monkeypatch.setattr("kv.cli.bench.processor.cores", lambda: 2)
    word, sentence = verdict(clients, daemon, processes, near_cache=near)
    assert word == limit
    assert sentence.endswith(".")


def test_processor_time_is_read_or_unknown() -> None:
    own = used_s(os.getpid())
    assert own is not None
    assert own == pytest.approx(sum(os.times()[:2]), abs=0.1)
    assert used_s(1 << 30) is None
    assert cores() >= 1


def test_the_pid_of_the_daemon_is_known_only_from_the_kernel() -> None:
    assert daemon_pid(17, 17) == 17
    assert daemon_pid(17, None) is None  # over TCP: the process may run on another host
    assert daemon_pid(os.getpid(), 1) is None  # a socket of systemd, and a process that is no daemon
