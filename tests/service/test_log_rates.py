"""The log takes ten lines of one kind a second, and tells how many more there were."""

import logging

from kvd.service.log_rates import LINES_PER_S, RateFilter
from tests.harness.clocks import ManualClock


def record(text: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord("kvd", logging.WARNING, __file__, 1, text, arguments, None)


def test_lines_of_one_kind_are_limited_whatever_peer_they_name() -> None:
    clock = ManualClock(0)
    rates = RateFilter(clock)
    written = [rates.filter(record("refused %s", f"tcp {number}")) for number in range(100)]
    assert written == [True] * LINES_PER_S + [False] * (100 - LINES_PER_S)
    assert rates.filter(record("closed %s", "tcp 1")), "another kind has lines of its own"
    clock.now += 1
    later = record("refused %s", "tcp 7")
    assert rates.filter(later)
    assert later.getMessage() == "refused tcp 7 (and 90 such lines were left out)"
    again = record("refused %s", "tcp 8")
    assert rates.filter(again)
    assert again.getMessage() == "refused tcp 8"
    assert rates.left_out == 90
