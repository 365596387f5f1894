"""The wire: frames, requests, error codes, limits, addresses. Specified in docs/protocol.md.

``errors`` and ``address`` import nothing heavy, for short-lived clients; the rest needs msgspec.
"""
