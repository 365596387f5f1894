"""Numbers as values."""

from kvd.protocol.numbers import decimal, is_number
from kvd.store.errors import NotANumber


def parse_number(key: str, value: bytes) -> int:
    """Return ``value``, which belongs to ``key``, as a number. Raises NotANumber."""
    number = decimal(value)
    if number is None:
        raise NotANumber(key, "the value is not a decimal number")
    if not is_number(number):
        raise NotANumber(key, "the value needs more than 64 bits")
    return number
