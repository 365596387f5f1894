"""The table of generations that clients of the near cache read; ``kvd/protocol/near_cache.py`` says what for.

It is a memfd, sealed so that its size is fixed and only the mapping that was made here before can write to it. Each
client gets an opening of its own, read-only: with a shared one it could move the daemon's file offset or set flags.
"""

import fcntl
import mmap
import os
import time
from array import array
from collections.abc import Iterable

from kvd.protocol.near_cache import (
    FIRST_GENERATION,
    LEASE,
    LEASE_MS,
    MAGIC,
    MAGIC_WORD,
    NOTED,
    NOTES,
    SEALS,
    SLOTS_WORD,
    first_note,
    table_bytes,
)

# A megabyte. With 20,000 writes a second to as many keys, another key hits a slot every 6 s or so.
SLOTS = 1 << 17
# A commit of more keys is not noted: no client would fetch all of them again on the chance that they are read.
MAX_NOTED_KEYS = 64
_LEASE_NS = LEASE_MS * 1_000_000
_LAST_NOTE = NOTES - 1


class GenerationTable:
    """The writing end. ``slots`` is a power of two. ``notes_changes``: clients are told which slots have changed last.

    Raises OSError if the memory cannot be allocated.
    """

    def __init__(self, slots: int = SLOTS, *, notes_changes: bool = True) -> None:
        self.slots = slots
        # Python's hash of a string is keyed, with a key chosen at the start (unless PYTHONHASHSEED is set): no client
        # can choose keys beforehand that disturb another client's slot.
        self._mask = slots - 1
        self._raised = 0
        self._descriptor = os.memfd_create("kvd-generations", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            # All of it now: a page that cannot be allocated later would kill the daemon when it is written to.
            os.posix_fallocate(self._descriptor, 0, table_bytes(slots))
            words = memoryview(mmap.mmap(self._descriptor, table_bytes(slots))).cast("Q")
            fcntl.fcntl(self._descriptor, fcntl.F_ADD_SEALS, SEALS)
        except BaseException:
            os.close(self._descriptor)
            raise
        words[MAGIC_WORD] = MAGIC
        words[SLOTS_WORD] = slots
        self._words = words
        self._generations = words[FIRST_GENERATION : first_note(slots)]
        self._notes = words[first_note(slots) :]
        self._noted = 0
        self._notes_changes = notes_changes

    def bump(self, keys: Iterable[str]) -> None:
        """Give the slots of ``keys``, which are about to change, a new generation.

        They share it, because it is only ever compared with older ones.
        """
        self._raised = raised = self._raised + 1
        generations, mask = self._generations, self._mask
        slots = [hashed & mask for hashed in map(hash, keys)]
        for slot in slots:
            generations[slot] = raised
        if self._notes_changes and len(slots) <= MAX_NOTED_KEYS:
            self._note(slots)

    def _note(self, slots: list[int]) -> None:
        at = self._noted & _LAST_NOTE
        if len(slots) > 1 and at + len(slots) <= NOTES:
            self._notes[at : at + len(slots)] = array("Q", slots)
        else:
            for number, slot in enumerate(slots, at):
                self._notes[number & _LAST_NOTE] = slot
        # Counted after the notes are written: a client that reads the number can read the notes.
        self._noted = self._words[NOTED] = self._noted + len(slots)

    def slots_and_generations(self, keys: Iterable[str]) -> list[tuple[int, int]]:
        """Return the slots of ``keys`` and their generations now, which belong to the values that they have now."""
        generations, mask = self._generations, self._mask
        return [(slot := hashed & mask, generations[slot]) for hashed in map(hash, keys)]

    def bump_all(self) -> None:
        """Give every slot a new generation: no entry of any client is current any more."""
        self._raised = raised = self._raised + 1
        for slot in range(self.slots):
            self._generations[slot] = raised

    def extend_lease(self) -> None:
        """Let clients trust the table for another LEASE_MS."""
        self._words[LEASE] = time.monotonic_ns() + _LEASE_NS

    def end_lease(self) -> None:
        """Let no client trust the table any more."""
        self._words[LEASE] = 0

    def open_read_only(self) -> int:
        """Return a new opening of the table, for a client; the caller closes it. Raises OSError."""
        return os.open(f"/proc/self/fd/{self._descriptor}", os.O_RDONLY | os.O_CLOEXEC)


class Generations:
    """Holds the table, which is created when the first client with a near cache attaches."""

    __slots__ = ("table",)

    def __init__(self) -> None:
        self.table: GenerationTable | None = None

    @property
    def table_bytes(self) -> int:
        """What the table takes, once there is one."""
        return 0 if self.table is None else table_bytes(self.table.slots)

    def create(self, slots: int, *, notes_changes: bool) -> GenerationTable:
        """Create the table; from now on each commit bumps the generations of its keys. Raises OSError."""
        self.table = table = GenerationTable(slots, notes_changes=notes_changes)
        return table
