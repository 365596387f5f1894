"""Numbers as values: decimal text, as people and other programs write it."""

from kvd.store.errors import NotANumber

_MOST_DIGITS = 20


def parse_number(key: str, value: bytes) -> int:
    """The number that ``value`` of ``key`` is. Raises NotANumber."""
    digits = value[1:] if value[:1] in (b"-", b"+") else value
    if not digits.isdigit() or len(digits) > _MOST_DIGITS:
        raise NotANumber(key, "the value is not a decimal number")
    return int(value)
