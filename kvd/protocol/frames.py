"""Framing: ``u32 length, big-endian``, followed by ``length`` bytes of MessagePack. See docs/protocol.md."""

HEADER_BYTES = 4


def frame(payload: bytes) -> bytes:
    """Prefix ``payload`` with its length."""
    return len(payload).to_bytes(HEADER_BYTES, "big") + payload
