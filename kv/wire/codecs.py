"""MessagePack, twice: a codec that runs fast, for programs, and one that imports fast, for the short-lived command.

msgspec encodes and decodes faster but takes 17 ms to import, half of it for parts of the standard library that the
command does not need; msgpack takes 4 ms. A property test holds that both write the same bytes.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing to ask it would cost the short-lived command 7 ms
if TYPE_CHECKING:
    from collections.abc import Callable


class Codec:
    """Encodes and decodes values. ``decode`` raises ``errors`` for bytes that are not one MessagePack value."""

    __slots__ = ("decode", "encode", "errors")

    def __init__(
        self,
        encode: Callable[[object], bytes],
        decode: Callable[[bytes | memoryview], object],
        errors: tuple[type[Exception], ...],
    ) -> None:
        self.encode = encode
        self.decode = decode
        self.errors = errors


def full() -> Codec:
    """Return the codec for programs: msgspec."""
    import msgspec

    encoder, decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder()
    return Codec(encoder.encode, decoder.decode, (msgspec.MsgspecError, UnicodeDecodeError, RecursionError))


def light() -> Codec:
    """Return the codec for a process that ends after one request: msgpack."""
    import msgpack

    def decode(data: bytes | memoryview) -> object:
        return msgpack.unpackb(data, raw=False, strict_map_key=True)

    # For malformed input, unpackb raises nothing but these.
    return Codec(msgpack.packb, decode, (ValueError, msgpack.UnpackException, msgpack.ExtraData))
