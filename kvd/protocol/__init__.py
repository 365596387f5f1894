"""The wire: frames, requests, error codes, limits, addresses. Specified in docs/protocol.md.

A frame is ``u32 length, big-endian``, followed by ``length`` bytes of MessagePack. It stands here, since every module
costs a short-lived command 0.1 ms. ``errors`` and ``address`` import nothing heavy, for such clients; the rest needs
msgspec.
"""

HEADER_BYTES = 4


def frame(payload: bytes) -> bytes:
    """Prefix ``payload`` with its length."""
    return len(payload).to_bytes(HEADER_BYTES, "big") + payload
