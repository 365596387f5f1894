"""The MVCC store: pure. It reads no clock, opens nothing and waits for nothing; start at ``store.py``."""
