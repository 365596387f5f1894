"""The table of generations: what clients see in it, and what a hostile client may try."""

import ctypes
import errno
import fcntl
import mmap
import os
import time
from collections.abc import Callable

import pytest

from kvd.engine.generations import GenerationTable
from kvd.protocol.near_cache import (
    FIRST_GENERATION,
    LEASE,
    LEASE_MS,
    MAGIC,
    MAGIC_WORD,
    SEALS,
    SLOTS_WORD,
    table_bytes,
)
from tests.harness.scale import TIMES

SLOTS = 64
SIZE = table_bytes(SLOTS)
F_SEAL_WRITE = 0x08
LOADS = 2_000_000 * TIMES
libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def table() -> GenerationTable:
    return GenerationTable(SLOTS)


def mapped_words(descriptor: int, slots: int) -> memoryview:
    """Map the words as a client does."""
    return memoryview(mmap.mmap(descriptor, table_bytes(slots), mmap.MAP_SHARED, mmap.PROT_READ)).cast("Q")


def mapped(descriptor: int) -> memoryview:
    return mapped_words(descriptor, SLOTS)


def test_a_client_sees_what_the_server_writes(table: GenerationTable) -> None:
    words = mapped(table.open_read_only())
    assert (words[LEASE], words[MAGIC_WORD], words[SLOTS_WORD]) == (0, MAGIC, SLOTS)
    slot, generation = table.slots_and_generations(["a"])[0]
    assert words[FIRST_GENERATION + slot] == generation
    table.bump(["a", "b"])
    assert words[FIRST_GENERATION + slot] == table.slots_and_generations(["a"])[0][1] > generation
    before = time.monotonic_ns()
    table.extend_lease()
    assert before + LEASE_MS * 10**6 <= words[LEASE] <= time.monotonic_ns() + LEASE_MS * 10**6
    table.end_lease()
    assert words[LEASE] == 0


def test_a_bump_raises_only_the_slots_of_its_keys(table: GenerationTable) -> None:
    keys = [f"key {number}" for number in range(200)]
    before = table.slots_and_generations(keys)
    for key, (slot, generation) in zip(keys, before, strict=True):
        others = [other for other in keys if table.slots_and_generations([other])[0][0] != slot]
        generations = table.slots_and_generations(others)
        table.bump([key])
        assert table.slots_and_generations([key])[0][1] > generation
        assert table.slots_and_generations(others) == generations
    assert len({slot for slot, _ in before}) > SLOTS // 2, "keys are spread over the slots"


# ---------------------------------------------------------------------- a hostile client

Attempt = Callable[[int], object]


def _reopened(flags: int, then: Attempt) -> Attempt:
    def attempt(descriptor: int) -> object:
        again = os.open(f"/proc/self/fd/{descriptor}", flags)
        try:
            return then(again)
        finally:
            os.close(again)

    return attempt


def _punch(descriptor: int) -> None:
    """Make a hole of zeros."""
    keep_size, punch_hole = 1, 2
    if libc.fallocate(descriptor, keep_size | punch_hole, ctypes.c_long(0), ctypes.c_long(SIZE)):
        raise OSError(ctypes.get_errno(), "fallocate")


def _protect(descriptor: int) -> None:
    """Map the table to read, and then try to make the mapping writable."""
    libc.mmap.restype = ctypes.c_void_p
    place = libc.mmap(None, ctypes.c_size_t(SIZE), mmap.PROT_READ, mmap.MAP_SHARED, descriptor, ctypes.c_long(0))
    try:
        if libc.mprotect(ctypes.c_void_p(place), ctypes.c_size_t(SIZE), mmap.PROT_READ | mmap.PROT_WRITE):
            raise OSError(ctypes.get_errno(), "mprotect")
    finally:
        libc.munmap(ctypes.c_void_p(place), ctypes.c_size_t(SIZE))


ATTEMPTS: dict[str, Attempt] = {
    "write": lambda table: os.pwrite(table, b"x" * 8, 64),
    "grow": lambda table: os.ftruncate(table, 2 * SIZE),
    "shrink": lambda table: os.ftruncate(table, 8),
    "map to write": lambda table: mmap.mmap(table, SIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
    "map to write only": lambda table: mmap.mmap(table, SIZE, mmap.MAP_SHARED, mmap.PROT_WRITE),
    "allocate": lambda table: os.posix_fallocate(table, 0, 2 * SIZE),
    "seal": lambda table: fcntl.fcntl(table, fcntl.F_ADD_SEALS, F_SEAL_WRITE),
    "seal what is sealed": lambda table: fcntl.fcntl(table, fcntl.F_ADD_SEALS, SEALS),
    "open again and write": _reopened(os.O_RDWR, lambda table: os.pwrite(table, b"x" * 8, 64)),
    "open again and append": _reopened(os.O_RDWR | os.O_APPEND, lambda table: os.write(table, b"x")),
    "open again and shrink": _reopened(os.O_RDWR, lambda table: os.ftruncate(table, 8)),
    "open again and grow": _reopened(os.O_RDWR, lambda table: os.ftruncate(table, 2 * SIZE)),
    "open again and map": _reopened(os.O_RDWR, lambda table: mmap.mmap(table, SIZE)),
    "make it writable": _protect,
    "punch a hole": _punch,
    "open again and make it writable": _reopened(os.O_RDWR, _protect),
    "open again and punch a hole": _reopened(os.O_RDWR, _punch),
    "open again and allocate": _reopened(os.O_RDWR, lambda table: os.posix_fallocate(table, 0, 2 * SIZE)),
    "open again and seal": _reopened(os.O_RDWR, lambda table: fcntl.fcntl(table, fcntl.F_ADD_SEALS, F_SEAL_WRITE)),
    "open truncated": lambda table: os.open(f"/proc/self/fd/{table}", os.O_RDWR | os.O_TRUNC),
}


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_a_client_cannot_change_the_table(table: GenerationTable, attempt: str) -> None:
    table.bump(["a"])
    table.extend_lease()
    descriptor = table.open_read_only()
    before = os.pread(descriptor, SIZE + 8, 0)
    with pytest.raises((OSError, ValueError)) as refused:
        ATTEMPTS[attempt](descriptor)
    if isinstance(refused.value, OSError):
        assert refused.value.errno in (errno.EPERM, errno.EACCES, errno.EBADF, errno.EINVAL), refused.value
    assert os.pread(descriptor, SIZE + 8, 0) == before
    assert len(before) == SIZE
    assert fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) == SEALS
    table.bump(["a"])
    slot, generation = table.slots_and_generations(["a"])[0]
    assert mapped(descriptor)[FIRST_GENERATION + slot] == generation, "the server can still write"


def test_each_client_has_an_open_file_of_its_own(table: GenerationTable) -> None:
    """With a shared one, a client could move the offset of another, or set its flags."""
    one, other = table.open_read_only(), table.open_read_only()
    os.lseek(one, 8, os.SEEK_SET)
    fcntl.fcntl(one, fcntl.F_SETFL, os.O_NONBLOCK | os.O_APPEND)
    assert os.lseek(other, 0, os.SEEK_CUR) == 0
    assert not fcntl.fcntl(other, fcntl.F_GETFL) & (os.O_NONBLOCK | os.O_APPEND)
    assert not os.get_inheritable(one)


# ---------------------------------------------------------------------- words are never torn


def test_a_word_is_never_torn() -> None:
    """Another process flips all bits of a word; a read as clients make it has all of them or none."""
    descriptor = os.memfd_create("words")
    os.ftruncate(descriptor, 4096)
    shared = mmap.mmap(descriptor, 4096)
    words = memoryview(shared).cast("Q")
    child = os.fork()
    if child == 0:
        while words[1] == 0:
            words[0] = 2**64 - 1
            words[0] = 0
        os._exit(0)
    try:
        reading = memoryview(mmap.mmap(descriptor, 4096, mmap.MAP_SHARED, mmap.PROT_READ)).cast("Q")
        seen: dict[int, int] = {}
        for _ in range(LOADS):
            word = reading[0]
            seen[word] = seen.get(word, 0) + 1
    finally:
        words[1] = 1
        os.waitpid(child, 0)
    print(seen)
    assert set(seen) <= {0, 2**64 - 1}
    assert min(seen.get(0, 0), seen.get(2**64 - 1, 0)) > LOADS // 1_000, "the word was flipped meanwhile"
