"""How keys and values are shown."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kv.cli.escape import show


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"plain text", "plain text"),
        ("🎂 crème".encode(), "🎂 crème"),
        (b"two\nlines\r\tand a tab", r"two\nlines\r\tand a tab"),
        (b"\x1b[31mred\x07\x00\x7f", r"\x1b[31mred\x07\x00\x7f"),
        (b"caf\xe9 \xff", r"caf\xe9 \xff"),
        ("\u0085 next line".encode(), r"\u0085 next line"),
        ("safe\u202etxt.exe".encode(), r"safe\u202etxt.exe"),
        ("\u2028\u2029\ufeff".encode(), r"\u2028\u2029\ufeff"),
        ("\U000e0041".encode(), r"\U000e0041"),
        (b"back\\slash \\n", r"back\slash \n"),
        ("👩\u200d🔬".encode(), "👩\u200d🔬"),
        ("\u0645\u06cc\u200c\u062e".encode(), "\u0645\u06cc\u200c\u062e"),
        ("10\u00a0000\u202fkm".encode(), "10\u00a0000\u202fkm"),
    ],
)
def test_characters_that_do_not_print_are_escaped(data: bytes, shown: str) -> None:
    assert show(data) == shown


@settings(deadline=None)
@given(st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_data_becomes_one_safe_line_of_utf8(data: bytes) -> None:
    text = show(data)
    text.encode()  # no lone surrogate
    assert len(text.splitlines()) <= 1
    # Only characters of category C can control a terminal; of these only the two joiners pass.
    assert all(character.isprintable() or character.isspace() or character in "\u200c\u200d" for character in text)
    assert not set(text) & set("\x1b\x07\x9b\u202e\u2066")


@settings(deadline=None)
@given(st.text(st.characters(categories=("L", "N", "P", "S")) | st.just(" ")))
def test_printable_text_is_shown_as_it_is(text: str) -> None:
    assert show(text) == text
