"""The wire: frames, positions, requests, error codes, limits, addresses. Specified in docs/protocol.md.

A frame is ``u32 length, big-endian``, followed by ``length`` bytes of MessagePack. Frames and positions stand here,
since every module costs a short-lived command 0.1 ms. ``errors`` and ``address`` import nothing heavy, for such
clients; the rest needs msgspec.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

HEADER_BYTES = 4
MAX_VERSION = (1 << 63) - 1
_STORE_ID_CHARACTERS = 16
_MAX_DIGITS = 19


def frame(payload: bytes) -> bytes:
    """Prefix ``payload`` with its length."""
    return len(payload).to_bytes(HEADER_BYTES, "big") + payload


class Position(int):
    """A version, together with the id of the store that gave it: ``store``. As a number it is the version.

    A version means something to its own store only. A daemon without a data directory has another store after each
    start, and so has a restored one. ``text`` is what a program keeps, and ``parse`` reads it again. Each store has a
    class of its own (``position_type``), so that a position costs little more time than a number.
    """

    __slots__ = ()
    store = ""

    @property
    def text(self) -> str:
        """The version and the store: ``1234.5f0c9e3a7b21d468``."""
        return f"{int(self)}.{self.store}"

    @staticmethod
    def parse(text: str) -> "Position":
        """Return the position that ``text`` was made of. Raises ValueError."""
        version = parse_version(text)
        if not isinstance(version, Position):
            raise ValueError(f"a position is a version and a store, as in 1234.5f0c9e3a7b21d468, not {text!r}")
        return version

    def __reduce__(self) -> "tuple[Any, ...]":
        return position, (int(self), self.store)


def position_type(store: str) -> type[Position]:
    """Return the class of the positions in ``store``: call it with a version."""
    return type("Position", (Position,), {"__slots__": (), "store": store})


def position(version: int, store: str) -> Position:
    """Return one position."""
    return position_type(store)(version)


def store_of(version: int | None) -> str | None:
    """Return the store that a version belongs to; None if it is a bare number, which means any store."""
    return version.store if isinstance(version, Position) else None


def split_version(text: str) -> tuple[int, str | None] | None:
    """Return the version and the store (None: a bare number) that ``text`` names; None if it names none."""
    digits, dot, store = text.partition(".")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= _MAX_DIGITS) or int(digits) > MAX_VERSION:
        return None
    if not dot:
        return int(digits), None
    is_store = len(store) == _STORE_ID_CHARACTERS and not set(store) - set("0123456789abcdef")
    return (int(digits), store) if is_store else None


def parse_version(text: str) -> int | None:
    """Return a version (``1234``) or a position (``1234.5f0c9e3a7b21d468``); None if ``text`` is neither."""
    parts = split_version(text)
    if parts is None or parts[1] is None:
        return None if parts is None else parts[0]
    return position(parts[0], parts[1])
