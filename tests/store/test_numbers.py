"""What counts as a number when a value is incremented."""

import pytest

from kvd.store.errors import NotANumber
from kvd.store.numbers import parse_number

MOST, LEAST = 2**63 - 1, -(2**63)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (b"0", 0), (b"7", 7), (b"-7", -7), (b"+7", 7), (b"-0", 0), (b"007", 7), (b"00000000000000000001", 1),
        (b"%d" % MOST, MOST), (b"%d" % LEAST, LEAST),
    ],
)  # fmt: skip
def test_decimal_text_is_a_number(value: bytes, number: int) -> None:
    assert parse_number("k", value) == number


@pytest.mark.parametrize(
    "value",
    [
        b"", b"-", b"+", b" 7", b"7 ", b"7\n", b"7.0", b"1e3", b"0x7", b"1_000", b"--7", b"+-7", b"7-", b"\xc2\xb2",
        b"\xef\xbc\x97", b"\0", b"nan", b"1" * 21, b"9" * 5000, b"%d" % (MOST + 1), b"%d" % (LEAST - 1),
    ],
)  # fmt: skip
def test_anything_else_is_refused_with_its_key(value: bytes) -> None:
    with pytest.raises(NotANumber) as refused:
        parse_number("k", value)
    assert refused.value.key == "k"
    assert refused.value.reason
