"""Numbers as values: decimal text, as people and other programs write it."""

from kvd.store.errors import NotANumber

# Longer texts are refused unparsed, because parsing takes quadratic time. A number of 64 bits has at most 19 digits,
# and may have leading zeros.
_MAX_DIGITS = 20
_BEYOND = 2**63


def is_number(number: int) -> bool:
    """Whether ``number`` fits into 64 bits, signed."""
    return -_BEYOND <= number < _BEYOND


def parse_number(key: str, value: bytes) -> int:
    """Return ``value``, which belongs to ``key``, as a number. Raises NotANumber."""
    digits = value[1:] if value[:1] in (b"-", b"+") else value
    if not digits.isdigit() or len(digits) > _MAX_DIGITS:
        raise NotANumber(key, "the value is not a decimal number")
    number = int(value)
    if not is_number(number):
        raise NotANumber(key, "the value needs more than 64 bits")
    return number
