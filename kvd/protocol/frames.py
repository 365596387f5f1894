"""Framing: ``u32 length, big-endian`` + that many bytes of MessagePack. See docs/protocol.md."""

HEADER_BYTES = 4


def frame(payload: bytes) -> bytes:
    """``payload`` with its length in front."""
    return len(payload).to_bytes(HEADER_BYTES, "big") + payload
