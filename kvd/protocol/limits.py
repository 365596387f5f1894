"""How much a peer may demand of the daemon: every size and count of the wire has its limit here."""

import msgspec

KIB = 1024
MIB = 1024 * KIB


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The limits of one daemon. Each can be configured; the reply to hello contains all of them.

    Sizes are bytes (of a key as UTF-8), durations milliseconds.
    """

    max_connections: int = 10_240
    # The daemon's own user and root are not counted.
    max_connections_per_uid: int = 1_024
    max_frame_bytes: int = 16 * MIB
    max_reply_bytes: int = 64 * MIB
    max_key_bytes: int = 4 * KIB
    max_value_bytes: int = 8 * MIB
    max_requests_per_frame: int = 65_536
    max_keys_per_request: int = 65_536
    max_snapshots_per_connection: int = 1_024
    # A snapshot without a read for this time is released.
    snapshot_idle_timeout_ms: int = 30_000
    max_ephemeral_keys_per_connection: int = 65_536
    # Over TCP they count for each name. The daemon's own user and root are not counted.
    max_watches_per_uid: int = 128
    # The answers to the last writes that carried an id, kept for clients that send such a write again.
    max_remembered_writes: int = 65_536
    # A frame that has begun must be complete after this time, plus a second for each 64 KiB of it.
    frame_timeout_ms: int = 10_000
    # A TCP connection must have sent hello after this time.
    hello_timeout_ms: int = 5_000
    # The connection of a peer that receives none of its replies for this time is closed.
    stalled_peer_timeout_ms: int = 30_000
    tcp_idle_timeout_ms: int = 300_000
    # How long an orderly stop waits for peers to receive their last replies.
    drain_timeout_ms: int = 10_000
