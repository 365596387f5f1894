"""Ranges of keys. This module imports nothing, for the sake of short-lived clients."""


def prefix_end(prefix: str) -> str | None:
    """Return the first string after all that begin with ``prefix``; None if there is none."""
    stem = prefix.rstrip(chr(0x10FFFF))
    if not stem:
        return None
    last = ord(stem[-1]) + 1
    return stem[:-1] + chr(0xE000 if last == 0xD800 else last)  # there are no surrogates in keys
