"""What a record must hold besides its right form: a checksum says that a record is whole, not that kvd wrote it.

A backup may come from anywhere. So each record that is read is checked here, before any other code sees it: whatever is
left is within the limits of the format, and its lists fit each other.
"""

from collections.abc import Collection

from kvd.journal.errors import Damaged
from kvd.journal.records import (
    DECODE_ERRORS,
    MAX_VERSION,
    AnyRecord,
    Clock,
    Commits,
    End,
    Group,
    Heads,
    Mark,
    Successor,
    decode,
)

# The largest limits that can be configured.
MAX_KEY_BYTES = 64 * 1024
MAX_VALUE_BYTES = 256 * 1024 * 1024
# Times are before the year 9999 on both sides of the epoch, so that every program can show them.
MAX_TIME_US = 253_370_764_800_000_000
# A longer list of clock steps was not written by kvd.
MAX_STEPS = 1_000
_MAX_BYTES_OF_CHARACTER = 4


class _Implausible(ValueError):
    """A record that kvd does not write."""


def read_record(payload: memoryview, path: str, at: int) -> AnyRecord:
    """Return the record of a sound payload, which stands at byte ``at`` of ``path``. Raises Damaged."""
    try:
        record = decode(payload)
        check(record)
    except DECODE_ERRORS as error:
        text = f"the record's checksum is valid, but it cannot be decoded: {error}"
    except _Implausible as error:
        text = f"the record's checksum is valid, but it cannot be right: {error}"
    else:
        return record
    raise Damaged(path, at, text)


def check(record: AnyRecord) -> None:
    """Raise ValueError if kvd does not write such a record."""
    match record:
        case Commits():
            _check_versions([record.watermark])
            for group in record.groups:
                _check_group(group)
        case Heads():
            _check_heads(record)
        case Mark():
            _check_versions([record.watermark, record.ceiling])
        case End():
            _check_versions([record.version, record.keys])
            _check_times([record.time])
        case Successor():
            _check_versions([record.watermark, record.number])
        case Clock():
            _check_clock(record)


def _check_group(group: Group) -> None:
    keys, values, count = group.keys, group.values, len(group.keys)
    if group.commits != 1 and (group.commits != count or group.keeps or None in values):
        raise _Implausible(f"{group.commits} commits of {count} keys")
    if len(values) != (0 if group.keeps else count) or not keys:
        raise _Implausible(f"{count} keys and {len(values)} values")
    if count > 1 and group.commits == 1:
        _check_different(keys)
    _check_versions([group.version])
    _check_versions([group.version + group.commits - 1])
    _check_times([group.time, group.wall or 0])
    _check_keys(keys)
    _check_values([value for value in values if value is not None])
    if group.deadlines or group.ephemeral:
        _check_lives(keys, group.deadlines or {}, group.ephemeral or ())
    if group.ids:
        _check_ids(group)
    if group.step is not None:
        _check_times(group.step)


def _check_ids(group: Group) -> None:
    last = group.version + group.commits - 1
    for _, _, version, _ in group.ids or ():
        if not group.version <= version <= last:
            raise _Implausible(f"an id of version {version}")


def _check_heads(record: Heads) -> None:
    keys = record.keys
    if not len(keys) == len(record.values) == len(record.versions):
        raise _Implausible(f"{len(keys)} keys, {len(record.values)} values and {len(record.versions)} versions")
    _check_different(keys)
    _check_keys(keys)
    _check_values(record.values)
    _check_versions(record.versions)
    _check_times([record.wall or 0])
    if record.deadlines or record.ephemeral:
        _check_lives(keys, record.deadlines or {}, record.ephemeral or ())


def _check_clock(record: Clock) -> None:
    if len(record.steps) > MAX_STEPS:
        raise _Implausible(f"{len(record.steps)} clock steps")
    _check_times([record.offset])
    for version, time, by in record.steps:
        _check_versions([version])
        _check_times([time, by])


def _check_lives(keys: list[str], deadlines: dict[str, int], ephemeral: Collection[str]) -> None:
    if not set(keys).issuperset(deadlines) or not set(keys).issuperset(ephemeral):
        raise _Implausible("a life of a key that it does not write")
    _check_times(deadlines.values())


def _check_different(keys: list[str]) -> None:
    if len(set(keys)) != len(keys):
        raise _Implausible("a key twice")


def _check_keys(keys: list[str]) -> None:
    longest = max(map(len, keys), default=1)
    if longest * _MAX_BYTES_OF_CHARACTER > MAX_KEY_BYTES:
        longest = max(len(key.encode()) for key in keys)
        if longest > MAX_KEY_BYTES:
            raise _Implausible(f"a key of {longest} bytes")
    if not all(keys):
        raise _Implausible("an empty key")


def _check_values(values: list[bytes]) -> None:
    if (largest := max(map(len, values), default=0)) > MAX_VALUE_BYTES:
        raise _Implausible(f"a value of {largest} bytes")


def _check_versions(versions: list[int]) -> None:
    if versions and not 0 <= min(versions) <= max(versions) <= MAX_VERSION:
        raise _Implausible(f"the versions {min(versions)} to {max(versions)}")


def _check_times(times: Collection[int]) -> None:
    if times and max(map(abs, times)) > MAX_TIME_US:
        raise _Implausible("a time after the year 9998")
