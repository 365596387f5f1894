"""Connections: bytes in and out in order, fairness, deadlines, admission."""
