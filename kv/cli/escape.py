"""How keys and values are shown: one record is one line, and nothing in it can attack a terminal.

A character that does not print becomes an escape, and so does each byte that is not UTF-8. A backslash is shown as it
is, and so are the joiners that hold emoji and words together and the spaces of every script.
"""

_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
# U+200C and U+200D join emoji and letters; the others are the spaces of Unicode's category Zs.
_HARMLESS = frozenset(
    "\u200c\u200d\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
)


def show(data: bytes | str) -> str:
    """Return ``data`` as printable text of one line."""
    text = data if isinstance(data, str) else data.decode("utf-8", "surrogateescape")
    return text if text.isprintable() else "".join(map(_show_character, text))


def _show_character(character: str) -> str:
    if character.isprintable() or character in _HARMLESS:
        return character
    if character in _SHORT:
        return _SHORT[character]
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # surrogateescape's form of a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
