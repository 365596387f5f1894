"""Histograms and the measurement of the loop's lag, without a daemon."""

from collections.abc import Callable

import pytest

from kvd.protocol import messages
from kvd.telemetry.metrics import SAMPLED, Histogram, LoopLag
from tests.harness.in_memory import connect


@pytest.mark.parametrize(
    ("seconds", "counts"),
    [(0.0, [1, 0, 0]), (0.1, [1, 0, 0]), (0.100_1, [0, 1, 0]), (0.5, [0, 1, 0]), (0.6, [0, 0, 1]), (9.0, [0, 0, 1])],
)
def test_a_duration_counts_in_the_first_bucket_whose_bound_it_does_not_exceed(
    seconds: float, counts: list[int]
) -> None:
    histogram = Histogram((0.1, 0.5))
    histogram.observe(seconds)
    assert (histogram.counts, histogram.total) == (counts, seconds)


def test_frames_are_named_by_their_requests() -> None:
    client = connect()
    get, ping = messages.Get("a"), messages.Ping()
    for requests in ([get], [get, get], [ping], [get, ping]):
        for _ in range(SAMPLED):  # one of them is timed
            client.run(requests, 0)
    frames = client.server.metrics.frames()
    assert {name: sum(times.counts) for name, times in frames} == {"get": 2, "ping": 1, "mixed": 1}


class Loop:
    """A loop that records the scheduled calls, for the test to run."""

    def __init__(self) -> None:
        self.due: list[Callable[[], None]] = []

    def call_later(self, _: float, call: Callable[[], None]) -> None:
        self.due.append(call)


def test_the_loop_is_not_woken_after_the_last_client_has_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop()
    lag = LoopLag(loop.call_later)
    assert loop.due == []  # before the first client has asked
    lag.measure()
    lag.measure()
    for _ in range(3):
        (call,) = loop.due
        loop.due.clear()
        call()
    assert len(loop.due) == 1  # there is time left
    monkeypatch.setattr(LoopLag, "WATCHED_S", 0.0)
    lag.measure()
    (call,) = loop.due
    loop.due.clear()
    call()
    assert loop.due == []
    assert sum(lag.times.counts) == 4
