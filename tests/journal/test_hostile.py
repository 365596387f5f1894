"""Files whose checksums are right and whose contents kvd never wrote: damage, with the place, and nothing else.

A backup may come from anywhere, and a checksum is no signature.
"""

import io
from collections.abc import Callable

import msgspec
import pytest

from kvd.engine.database import Database
from kvd.engine.examination import examine
from kvd.engine.replay import Replay
from kvd.journal import names
from kvd.journal.backup_file import BACKUP_MAGIC, BackupReader, load_backup
from kvd.journal.errors import Damaged
from kvd.journal.records import (
    CHECKPOINT_MAGIC,
    LOG_MAGIC,
    Clock,
    Codec,
    Commits,
    End,
    Group,
    Header,
    Heads,
    Mark,
    Record,
    Successor,
)
from tests.journal.disks import MemoryDisk
from tests.journal.running import recovered

NOBODY = (None, None, "")
YEAR_294247 = 9_224_318_015_999_999_999
FAR = 2**64 - 1


def header(number: int, version: int = 0) -> Header:
    return Header(7, number, version, version, b"a store!")


def file_of(magic: bytes, number: int, records: list[Record | bytes], version: int = 0) -> bytes:
    """Return a file with right checksums. A record may be the bytes of its payload."""
    codec = Codec(7)
    data = header(number, version).encode(magic)
    for record in records:
        if isinstance(record, bytes):
            length = len(record).to_bytes(4, "little")
            data += length + codec._crc(len(record), record).to_bytes(4, "little") + record
        else:
            data += codec.encode(record)
    return data


def group(version: int = 1, **fields: object) -> Group:
    plain = Group(version, 0, NOBODY, 1, ["k"], [b"v"])
    return msgspec.structs.replace(plain, **fields)


def nested(depth: int) -> bytes:
    """Return a commit whose id has an answer of nested arrays."""
    payload = msgspec.msgpack.encode(Commits(0, [group(ids=[(1, b"i", 1, 4711)])]))
    return payload.replace(msgspec.msgpack.encode(4711), b"\x91" * depth + b"\xc0")


COMMITS: dict[str, Record | bytes] = {
    "arrays in arrays": nested(100_000),
    "an answer as deep as Python goes": nested(900),
    "a key without a value": Commits(0, [group(keys=["k", "l"])]),
    "a value without a key": Commits(0, [group(values=[b"v", b"w"])]),
    "no key": Commits(0, [group(keys=[], values=[])]),
    "an empty key": Commits(0, [group(keys=[""])]),
    "a key of 9 MB": Commits(0, [group(keys=["k" * 9_000_000])]),
    "a key of 64 KiB and a byte": Commits(0, [group(keys=["ü" * 32_768 + "k"])]),
    "a key twice": Commits(0, [group(keys=["k", "k"], values=[b"1", b"2"])]),
    "a negative version": Commits(0, [group(-1)]),
    "the largest version": Commits(0, [group(FAR)]),
    "two commits of one key": Commits(0, [group(commits=2)]),
    "no commit": Commits(0, [group(commits=0)]),
    "a deletion among several commits": Commits(0, [group(commits=2, keys=["k", "l"], values=[b"v", None])]),
    "a deletion of what is not there": Commits(0, [group(values=[None])]),
    "the value of what is not there": Commits(0, [group(values=[], keeps=True)]),
    "a value that is kept and given": Commits(0, [group(keeps=True)]),
    "a time in the year 294247": Commits(0, [group(time=YEAR_294247)]),
    "a deadline in the year 294247": Commits(0, [group(deadlines={"k": YEAR_294247})]),
    "a deadline of another key": Commits(0, [group(deadlines={"l": 1})]),
    "a connection of another key": Commits(0, [group(ephemeral=["l"])]),
    "an id of another version": Commits(0, [group(ids=[(1, b"i" * 16, 2, 2)])]),
    "a clock set to the year 294247": Commits(0, [group(step=(0, YEAR_294247))]),
    "a mark of the largest version": Mark(FAR, FAR, False),
    "a thousand clock steps": Clock(b"", 0, [(1, 1, 1)] * 1_001),
    "a segment that is not there": Successor(0, 2),
}


def directory_of(record: Record | bytes) -> dict[str, bytes]:
    return {names.log(1): file_of(LOG_MAGIC, 1, [record])}


@pytest.mark.parametrize("what", [what for what in COMMITS if what != "an answer as deep as Python goes"])
def test_a_log_that_kvd_did_not_write_is_damage(what: str) -> None:
    with pytest.raises(Damaged):
        recovered(MemoryDisk(directory_of(COMMITS[what])))


@pytest.mark.parametrize("what", COMMITS)
def test_the_examination_of_such_a_log_agrees_with_a_start(what: str) -> None:
    try:
        recovered(MemoryDisk(directory_of(COMMITS[what])))
    except Damaged as damaged:
        found = examine(MemoryDisk(directory_of(COMMITS[what])))
        assert str(damaged) in [str(each) for each in found.damages]  # noqa: PT017 - either is right
        assert found.recovered is None
    else:
        assert examine(MemoryDisk(directory_of(COMMITS[what]))).damages == []


def heads(**fields: object) -> Heads:
    return msgspec.structs.replace(Heads(["a", "b"], [b"1", b"2"], [1, 1]), **fields)


HEADS: dict[str, tuple[list[Record | bytes], End]] = {
    "a key without a value": ([heads(values=[b"1"])], End(2, 1, 0)),
    "a key without a version": ([heads(versions=[1])], End(2, 1, 0)),
    "a key twice in a piece": ([heads(keys=["a", "a"])], End(2, 1, 0)),
    "an empty key": ([heads(keys=["", "a"])], End(2, 1, 0)),
    "a key of 9 MB": ([heads(keys=["k" * 9_000_000, "a"])], End(2, 1, 0)),
    "a negative version": ([heads(versions=[1, -1])], End(2, 1, 0)),
    "a value after the end": ([heads(versions=[1, 9])], End(2, 1, 0)),
    "the largest version": ([heads(versions=[1, FAR])], End(2, 1, 0)),
    "an end at the largest version": ([heads()], End(2, FAR, 0)),
    "an end at a negative version": ([heads()], End(2, -1, 0)),
    "an end in the year 294247": ([heads()], End(2, 1, YEAR_294247)),
    "more keys than there are": ([heads()], End(3, 1, 0)),
    "fewer keys than there are": ([heads()], End(1, 1, 0)),
    "a deadline in the year 294247": ([heads(deadlines={"a": YEAR_294247})], End(2, 1, 0)),
    "a deadline of another key": ([heads(deadlines={"c": 1})], End(2, 1, 0)),
    "a connection of another key": ([heads(ephemeral=["c"])], End(2, 1, 0)),
    "arrays in arrays": ([b"\x91" * 100_000 + b"\xc0"], End(0, 1, 0)),
}


def loaded(data: bytes) -> Database:
    contents = Replay()
    load_backup(BackupReader(io.BytesIO(data), "kvd.backup"), contents, lambda done: None)
    return Database(contents=contents)


@pytest.mark.parametrize("what", HEADS)
def test_a_backup_that_kvd_did_not_write_is_damage(what: str) -> None:
    pieces, end = HEADS[what]
    with pytest.raises(Damaged):
        loaded(file_of(BACKUP_MAGIC, 0, [*pieces, end]))


@pytest.mark.parametrize("what", HEADS)
def test_a_checkpoint_that_kvd_did_not_write_is_damage(what: str) -> None:
    pieces, end = HEADS[what]
    contents = {
        names.checkpoint(2): file_of(CHECKPOINT_MAGIC, 2, [*pieces, end], 1),
        names.log(2): file_of(LOG_MAGIC, 2, [Mark(1, 1, True)], 1),
    }
    with pytest.raises(Damaged):
        recovered(MemoryDisk(contents))


@pytest.mark.parametrize("what", [what for what in COMMITS if "Successor" not in type(COMMITS[what]).__name__])
def test_no_commit_of_a_backup_raises_anything_but_damage(what: str) -> None:
    try:
        database = loaded(file_of(BACKUP_MAGIC, 0, [COMMITS[what], End(1, 1, 0)]))
    except Damaged:
        return
    assert len(database.store.scan("", None, 99).items) == database.store.counters.keys == 1


def test_a_commit_of_a_backup_after_its_end_is_damage() -> None:
    with pytest.raises(Damaged, match="ends at version 1, but has a commit of version 2"):
        loaded(file_of(BACKUP_MAGIC, 0, [Commits(0, [group(2)]), End(1, 1, 0)]))


@pytest.mark.parametrize(
    "read", [loaded, lambda data: recovered(MemoryDisk({names.log(1): data}))], ids=["backup", "log"]
)
@pytest.mark.parametrize(("version", "watermark"), [(FAR, FAR), (2**62 + 1, 0), (1, 2)])
def test_a_header_with_impossible_versions_is_damage(
    read: Callable[[bytes], object], version: int, watermark: int
) -> None:
    magic, number = (BACKUP_MAGIC, 0) if read is loaded else (LOG_MAGIC, 1)
    data = Header(7, number, version, watermark, b"a store!").encode(magic)
    with pytest.raises(Damaged, match="versions"):
        read(data)


def test_what_is_just_within_the_limits_is_read() -> None:
    """The largest key and time that any configuration allows."""
    key = "k" * 65_536
    commit = Commits(0, [group(keys=[key], time=253_370_764_800_000_000, deadlines={key: 253_370_764_800_000_000})])
    database, _ = recovered(MemoryDisk(directory_of(commit)))
    assert database.store.get(key) == b"v"
