"""The names of the files of a data directory, and names that do not belong to it."""

import pytest

from kvd.journal import names


@pytest.mark.parametrize("number", [1, 7, 10**9, 10**10 - 1])
def test_a_number_comes_back_from_its_names(number: int) -> None:
    assert names.log_numbers([names.log(number)]) == [number]
    assert names.checkpoint_numbers([names.checkpoint(number)]) == [number]


def test_names_are_in_the_order_of_their_numbers() -> None:
    assert sorted(map(names.log, (10, 9, 1000))) == [names.log(9), names.log(10), names.log(1000)]
    assert names.log_numbers([names.log(10), names.log(9)]) == [9, 10]


def test_segments_and_checkpoints_are_distinguished() -> None:
    found = [names.log(1), names.checkpoint(2), names.LOCK]
    assert (names.log_numbers(found), names.checkpoint_numbers(found)) == ([1], [2])


OTHERS = [
    "1.log",
    "00000000001.log",
    "000000000a.log",
    "000000000\N{ARABIC-INDIC DIGIT ONE}.log",
    "-000000001.log",
    ".log",
    "0000000001.LOG",
]


@pytest.mark.parametrize("name", OTHERS)
def test_foreign_files_are_ignored(name: str) -> None:
    assert names.log_numbers([name]) == []


def test_an_unfinished_file_does_not_count() -> None:
    name = names.unfinished(names.log(3))
    assert names.is_unfinished(name)
    assert names.log_numbers([name]) == []
    assert not names.is_unfinished(names.log(3))
