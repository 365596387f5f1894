"""``kv incr -n`` says what ``kv incr`` does: both read numbers alike."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.harness.kv_command import Kv

VALUES = [
    "5",
    "+5",
    "-5",
    "00000000000000000005",
    "+0",
    "-0",
    "9223372036854775807",
    "9223372036854775808",
    "x",
    "",
    "5 ",
]


@pytest.mark.parametrize("value", VALUES)
def test_a_rehearsal_and_the_daemon_agree_about_a_value(shared_kv: "Kv", value: str) -> None:
    shared_kv.ok("set", "--key", "n", "--value", value)
    rehearsal, real = shared_kv("incr", "-n", "n", "0"), shared_kv("incr", "n", "0")
    assert (rehearsal.returncode == 0) == (real.returncode == 0), (rehearsal, real)
    assert rehearsal.returncode != 0 or real.stdout.strip() in rehearsal.stdout


@pytest.mark.parametrize("by", [value for value in VALUES if value])
def test_what_is_added_is_read_as_a_value_is(shared_kv: "Kv", by: str) -> None:
    shared_kv.ok("set", "n=0")
    shared_kv.ok("set", "--key", "m", "--value", by)
    as_value = shared_kv("incr", "m", "0").returncode == 0
    assert (shared_kv("incr", "n", "--", by).returncode == 0) == as_value
