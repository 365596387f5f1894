"""Framing, byte for byte."""

import pytest

from kvd.protocol import HEADER_BYTES, frame


@pytest.mark.parametrize(
    ("payload", "framed"),
    [(b"", b"\0\0\0\0"), (b"\xc0", b"\0\0\0\1\xc0"), (b"x" * 258, b"\0\0\1\2" + b"x" * 258)],
)
def test_a_frame_is_its_length_in_big_endian_and_its_payload(payload: bytes, framed: bytes) -> None:
    assert frame(payload) == framed
    assert len(framed) == HEADER_BYTES + len(payload)
