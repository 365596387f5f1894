"""The table of generations that clients of the near cache read; ``kvd/protocol/near_cache.py`` says what for.

It is a memfd, sealed so that its size is fixed and nobody can write to it any more but through the mapping made here
before. Each client gets an opening of its own, read-only: with a shared one it could move our file offset or set flags.
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

# A megabyte. With 20,000 writes a second to as many keys, a slot is hit by somebody else's key every 6 s or so.
SLOTS = 1 << 17
# A commit of more keys is not noted: nobody would fetch all that anew on the chance that it is read.
MAX_NOTED_KEYS = 64
_LEASE_NS = LEASE_MS * 1_000_000
_LAST_NOTE = NOTES - 1


class GenerationTable:
    """The writing end. ``slots`` is a power of two. Raises OSError if the memory is not to be had."""

    def __init__(self, slots: int = SLOTS, *, notes_changes: bool = True) -> None:
        self.slots = slots
        # Python's hash of a string is keyed, with a key chosen at the start (unless PYTHONHASHSEED is set): nobody can
        # choose keys beforehand that disturb another's slot.
        self._mask = slots - 1
        self._raised = 0
        self._descriptor = os.memfd_create("kvd-generations", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            # All of it now: a page that cannot be had later would kill the daemon when it is written to.
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
        """``keys`` are about to change. All get the same new generation: it is only ever compared with older ones."""
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
        # Counted behind: who sees the number sees the notes.
        self._noted = self._words[NOTED] = self._noted + len(slots)

    def slots_and_generations(self, keys: Iterable[str]) -> list[tuple[int, int]]:
        """The slots of ``keys`` and their generations now: what belongs to the values that they have now."""
        generations, mask = self._generations, self._mask
        return [(slot := hashed & mask, generations[slot]) for hashed in map(hash, keys)]

    def bump_all(self) -> None:
        """Nothing that any client keeps is current any more."""
        self._raised = raised = self._raised + 1
        for slot in range(self.slots):
            self._generations[slot] = raised

    def extend_lease(self) -> None:
        """Clients may trust the table for another LEASE_MS."""
        self._words[LEASE] = time.monotonic_ns() + _LEASE_NS

    def end_lease(self) -> None:
        """Nobody may trust it any more."""
        self._words[LEASE] = 0

    def open_read_only(self) -> int:
        """A new opening of the table, for a client; the caller closes it. Raises OSError."""
        return os.open(f"/proc/self/fd/{self._descriptor}", os.O_RDONLY | os.O_CLOEXEC)


class Generations:
    """Holds the table once a client with a near cache has attached; before, there is nothing to be told."""

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
