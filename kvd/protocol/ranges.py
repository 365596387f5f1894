"""Ranges of keys, which are ordered by their UTF-8 bytes (the same order as that of code points)."""

_LAST = chr(0x10FFFF)
_FIRST_SURROGATE, _AFTER_SURROGATES = 0xD800, chr(0xE000)


def prefix_end(prefix: str) -> str | None:
    """Return the first string after all that begin with ``prefix``; None if there is none.

    >>> prefix_end("team/")
    'team0'
    """
    cut = prefix.rstrip(_LAST)
    if not cut:
        return None
    following = ord(cut[-1]) + 1
    return cut[:-1] + (_AFTER_SURROGATES if following == _FIRST_SURROGATE else chr(following))
