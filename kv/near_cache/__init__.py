"""Reads that a client answers from its own memory, and that are never stale.

The proof is in ``kvd/protocol/near_cache.py``.
"""
