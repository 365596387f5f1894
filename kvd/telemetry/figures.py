"""All measurements at one moment, as plain numbers: the input of ``prometheus.py``."""

import msgspec

from kvd.telemetry.metrics import Histogram


class Figures(msgspec.Struct, kw_only=True, frozen=True):
    """The figures of one moment. ``has_log``: whether there is a commit log, so that its figures mean something."""

    keys: int
    value_bytes: int
    set_operations: int
    get_operations: int
    get_misses: int
    delete_operations: int
    expired_keys: int
    evicted_keys: int
    keys_with_deadline: int
    commits: int
    conflicts: int
    version: int
    errors: dict[str, int]
    history_versions: int
    history_bytes: int
    history_age_us: int
    oldest_readable_version: int
    snapshots: int
    pinned_versions: int
    memory_by_kind: dict[str, int]
    memory_limit_bytes: int
    connections: int
    connections_accepted: int
    connections_refused: int
    feeds: int
    near_cache_clients: int
    frame_times: list[tuple[str, Histogram]]
    sliced_times: Histogram
    loop_lag_times: Histogram
    has_log: bool
    sync_times: Histogram
    log_bytes_written: int
    log_synced_version: int
    checkpoint_version: int
    checkpoint_failures: int
    resident_bytes: int
