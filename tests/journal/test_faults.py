"""Each call to the disk fails, once or from then on, in every way: what was acknowledged is there after a clean start.

And the error is one that is documented: NoSpace, with nothing changed, if space cannot be allocated; otherwise OSError,
which ends the commit log, or only the checkpoint that was being written. KVD_TEST_SCALE makes it try every call.
"""

import errno
import random
from collections.abc import Callable

import pytest

from kvd.journal.errors import NoSpace
from tests.harness.scale import SCALE
from tests.journal.crashes import Crash, FailingDisk, crashes
from tests.journal.disks import MemoryDisk
from tests.journal.running import Running, items

NUMBERS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EINTR, errno.EMFILE)
ALLOCATING = ("create", "allocate")
SHORT = -errno.ENOSPC  # half of a write is done, then there is no space
WRITES = 6
ALL_KINDS = {"create", "allocate", "write", "sync", "sync_directory", "truncate", "rename", "remove", "read", "names"}


class Client:
    """Writes, and remembers the acknowledged and the shown commits."""

    def __init__(self, disk: FailingDisk) -> None:
        self.disk = disk
        self.acknowledged: dict[str, bytes] = {}
        self.sent: dict[str, set[bytes]] = {}
        self.refused = 0
        self.version = 0

    def write(self, running: Running, count: int = WRITES) -> None:
        """Make commits, each of them written, synced and acknowledged. Raises OSError."""
        for number in range(count):
            key, value = f"key{number}", b"%d" % len(self.sent) * 40
            before = running.database.store.version, items(running.database)
            try:
                version = running.set({key: value})
            except NoSpace:
                self.refused += 1
                assert (running.database.store.version, items(running.database)) == before
                continue
            self.sent.setdefault(key, set()).add(value)
            running.write()
            assert running.log.synced == version
            self.acknowledged[key] = value
            self.version = version

    def live(self) -> None:
        """Run two processes that do everything a process does. Raises OSError."""
        running = Running(self.disk, segment_bytes=512)
        try:
            running.log.raise_ceiling(100)
        except NoSpace:  # the start found no space for a segment
            self.refused += 1
        self.write(running)
        self.checkpoint(running)
        self.write(running)
        running.remove_superseded()
        running.log.mark()
        running.log.close()
        running = Running(self.disk, segment_bytes=512)  # after a clean stop
        self.write(running)
        self.checkpoint(running)
        running = Running(self.disk, segment_bytes=512)  # after a kill
        self.write(running)
        running.write()
        running.log.close()

    def checkpoint(self, running: Running) -> None:
        """Write a checkpoint, which may fail without consequences unless the commit log failed."""
        try:
            running.checkpoint()
        except NoSpace:
            self.refused += 1
        except OSError:
            if running.log.error is not None:
                raise

    def check(self, found: dict[str, tuple[bytes | None, int]]) -> None:
        """Check that every acknowledged value is there, or a later one that may have committed."""
        for key, value in self.acknowledged.items():
            there = found.get(key, (None, 0))[0]
            assert there == value or there in self.sent[key], f"{key} is {there!r}"
        newest = max((version for _, version in found.values()), default=0)
        assert newest >= self.version


def failing_at(number: int, error: int, *, for_ever: bool) -> tuple[Callable[[str], int | None], list[str]]:
    """Fails at the call with this number, and with ``for_ever`` at all later ones of its kind; records the calls."""
    calls: list[str] = []
    kind: list[str] = []

    def fails(call: str) -> int | None:
        calls.append(call)
        if len(calls) - 1 == number:
            kind.append(call)
            return error
        return error if for_ever and call in kind else None

    return fails, calls


def last_crash(disk: FailingDisk) -> Crash:
    *_, crash = crashes(disk)
    return crash


def all_calls() -> list[str]:
    disk = FailingDisk()
    disk.fails, calls = failing_at(-1, 0, for_ever=False)
    Client(disk).live()
    return calls


@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "for ever"])
@pytest.mark.parametrize(
    "error", [*NUMBERS, -errno.ENOSPC], ids=lambda n: errno.errorcode[n] if n > 0 else "short write"
)
def test_after_any_fault_a_clean_start_has_what_was_acknowledged(error: int, *, for_ever: bool) -> None:
    chance = random.Random(error)  # noqa: S311 - a test that can be repeated
    calls = all_calls()
    assert {"create", "allocate", "write", "sync", "sync_directory", "truncate", "rename", "remove", "read"} <= set(
        calls
    )
    stride = 1 if SCALE > 1 else 3
    tried = ended = refused = 0
    for number in range(chance.randrange(stride), len(calls), stride):
        if error < 0 and calls[number] != "write":
            continue
        disk = FailingDisk()
        disk.fails, _ = failing_at(number, abs(error), for_ever=for_ever)
        disk.is_short = error < 0
        client = Client(disk)
        try:
            client.live()
        except OSError as raised:
            assert raised.errno == abs(error)  # noqa: PT017 - that it is raised at all is not said
            ended += 1
        refused += client.refused > 0
        tried += 1
        disk.fails = lambda call: None
        after_all_kinds_of_ends(disk, client, chance)
    print(f"{tried} faults: {ended} ended the process, {refused} had commits refused")
    assert tried > len(calls) // 4 / stride or error < 0
    assert ended
    assert refused or error < 0


def after_all_kinds_of_ends(disk: FailingDisk, client: Client, chance: random.Random) -> None:
    """The power fails with the fault; or the process ends, the next one starts, and then the power fails."""
    for _, state in list(last_crash(disk).states(chance, brief=True))[:6]:
        client.check(items(Running(MemoryDisk(state)).database))
    found = items(Running(disk, segment_bytes=512).database)
    client.check(found)
    for _, state in list(last_crash(disk).states(chance, brief=True))[:6]:
        assert items(Running(MemoryDisk(state)).database) == found, "what was served could still be lost"


# ---------------------------------------------------------------------- one by one


def test_a_sync_that_failed_is_never_tried_again() -> None:
    disk = FailingDisk()
    running = Running(disk)
    running.set({"a": b"1"})
    disk.fails, _ = failing_at(1, errno.EIO, for_ever=False)
    with pytest.raises(OSError, match="Input/output"):
        running.write()
    for again in (running.write, running.log.sync, running.log.mark, running.log.rotate, running.log.close):
        with pytest.raises(OSError, match="earlier"):
            again()
    assert running.log.synced == 0


def test_after_a_failed_sync_the_next_start_serves_only_what_it_has_synced_itself() -> None:
    """The pages hold what never reached the disk: it may be served, but not before it is copied."""
    disk = FailingDisk()
    running = Running(disk)
    running.set({"a": b"1"})
    disk.fails, _ = failing_at(1, errno.EIO, for_ever=False)
    with pytest.raises(OSError, match="Input/output"):
        running.write()
    assert items(Running(disk).database) == {"a": (b"1", 1)}
    assert items(Running(MemoryDisk(last_crash(disk).left([]))).database) == {"a": (b"1", 1)}


def fill(running: Running) -> int:
    """Commit until there is no space; return the number of commits."""
    for stored in range(1000):
        try:
            running.set({f"key{stored}": b"x" * 100})
        except NoSpace as error:
            assert "nothing was written" in str(error)  # noqa: PT017 - it need not come
            return stored
        running.write()
    raise AssertionError("there is always space")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_without_space_commits_are_refused_until_there_is_space_again(number: int) -> None:
    disk = FailingDisk()
    running = Running(disk, segment_bytes=2048)
    disk.fails = lambda call: number if call in ALLOCATING else None
    stored = fill(running)
    assert stored >= 5
    assert running.log.number == 2  # the one that was allocated in advance is used
    assert len(items(running.database)) == running.database.store.version == stored
    disk.fails = lambda call: None
    running.set({"later": b""})
    running.write()
    assert len(items(Running(MemoryDisk(disk.contents())).database)) == stored + 1


def test_a_start_without_space_for_the_next_segment_serves_reads() -> None:
    disk = FailingDisk()
    running = Running(disk)
    running.set({"a": b"1"})
    running.write()
    creates: list[str] = []

    def fails(call: str) -> int | None:
        creates.extend([call] if call == "allocate" else [])
        return errno.ENOSPC if call == "allocate" and len(creates) > 1 else None

    disk.fails = fails
    again = Running(disk)
    assert items(again.database) == {"a": (b"1", 1)}
    with pytest.raises(NoSpace):
        again.set({"a": b"x" * 5000})


def test_a_clean_stop_writes_its_mark_without_space_too() -> None:
    disk = FailingDisk()
    running = Running(disk, segment_bytes=1024)
    disk.fails = lambda call: errno.ENOSPC if call in ALLOCATING else None
    fill(running)
    for _ in range(100):
        running.log.mark()
    running.log.close()
    disk.fails = lambda call: None
    assert Running(disk, segment_bytes=1024).found.clean


def test_a_checkpoint_whose_rename_fails_closes_its_file_once() -> None:
    """Its number may belong to another file, or to a client, at once."""
    disk = FailingDisk()
    running = Running(disk)
    disk.fails = lambda call: errno.EIO if call == "rename" and running.log.number == 2 else None
    closed: list[int] = []
    close = disk.close_file

    def closing(descriptor: int) -> None:
        closed.append(descriptor)
        close(descriptor)

    disk.close_file = closing  # type: ignore[method-assign]
    with pytest.raises(OSError, match="Input/output"):
        running.checkpoint()
    assert len(closed) == len(set(closed))
    assert [name for name in disk.names() if "checkpoint" in name] == []
