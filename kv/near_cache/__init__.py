"""Reads answered in the client's own process without ever being stale.

The proof is in ``kvd/protocol/near_cache.py``.
"""
