"""The limits have the documented defaults, and cannot be changed in place."""

import msgspec
import pytest

from kvd.protocol.limits import Limits

DOCUMENTED = {
    "max_connections": 10_240,
    "max_connections_per_uid": 1_024,
    "max_frame_bytes": 16 * 2**20,
    "max_reply_bytes": 64 * 2**20,
    "max_key_bytes": 4_096,
    "max_value_bytes": 8 * 2**20,
    "max_requests_per_frame": 65_536,
    "max_keys_per_request": 65_536,
    "max_snapshots_per_connection": 1_024,
    "snapshot_idle_timeout_ms": 30_000,
    "max_ephemeral_keys_per_connection": 65_536,
    "max_watches_per_uid": 128,
    "max_remembered_writes": 65_536,
    "frame_timeout_ms": 10_000,
    "hello_timeout_ms": 5_000,
    "stalled_peer_timeout_ms": 30_000,
    "tcp_idle_timeout_ms": 300_000,
    "drain_timeout_ms": 10_000,
}


def test_the_defaults_are_the_documented_ones() -> None:
    assert msgspec.to_builtins(Limits()) == DOCUMENTED


def test_limits_are_immutable() -> None:
    with pytest.raises(AttributeError):
        Limits().max_key_bytes = 1  # type: ignore[misc]


def test_an_unknown_limit_is_rejected() -> None:
    with pytest.raises(msgspec.ValidationError, match="max_keys"):
        msgspec.convert({"max_keys": 1}, Limits)
