"""What holds for the reply to any frame."""

from collections.abc import Iterator
from typing import Any

import msgspec

from kvd.protocol.errors import CODES
from kvd.requests.sliced import Result

# An error message has at most this many characters.
MAX_MESSAGE = 300 + len("…")


def joined(work: Iterator[Result | None]) -> Any:  # noqa: ANN401 - whatever the server replies
    """The reply to a frame that is run in slices."""
    *slices, result = work
    assert slices
    assert set(slices) == {None}
    assert result is not None
    frame = b"".join(result[0])
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4
    return msgspec.msgpack.decode(frame[4:])


def checked(replies: list[Any], count: int) -> list[Any]:
    """What holds for every reply frame: one reply for each request, and errors of the documented form."""
    assert isinstance(replies, list)
    assert len(replies) == count
    for reply in replies:
        if isinstance(reply, dict):
            assert reply["error"] in CODES
            assert isinstance(reply["message"], str)
            assert 0 < len(reply["message"]) <= MAX_MESSAGE
    return replies
