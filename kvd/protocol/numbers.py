"""The numbers that ``increment`` adds to: decimal text of 64 bits, signed, as people and other programs write it.

One parser for the daemon and for the command's rehearsals.
"""

# Longer texts are refused unparsed, because parsing takes quadratic time. A number of 64 bits has at most 19 digits,
# and may have leading zeros.
_MAX_DIGITS = 20
_BEYOND = 2**63


def is_number(number: int) -> bool:
    """Whether ``number`` fits into 64 bits, signed."""
    return -_BEYOND <= number < _BEYOND


def decimal(text: bytes) -> int | None:
    """Return the number that ``text`` says, which may need more than 64 bits; None if it says none."""
    digits = text[1:] if text[:1] in (b"-", b"+") else text
    return int(text) if digits.isdigit() and len(digits) <= _MAX_DIGITS else None
