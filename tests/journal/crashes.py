"""Every state of a disk that a power cut may leave: a disk that records its calls, and the states that may follow.

After a crash only this is certain: the writes to a file before its last sync *began*, and the changes of names before
the last sync of the directory. Everything else may have happened or not, each operation by itself and in any order, and
a write may be torn. That is worse than any file system; code that survives it survives all of them.

        create  allocate  write  sync  rename  write │ crash
        ······  ════════  ═════        ······  ····· │         ═ certain   · perhaps
"""

import random
from collections.abc import Callable, Iterator
from typing import Any

from tests.journal.disks import Failing, File, MemoryDisk

Contents = dict[str, bytes]
# ("write", file, offset, data), ("allocate" or "truncate", file, size), ("names", {name: file or None}),
# ("sync", file, how many operations it covers), ("sync_names",), ("sync_failed", file),
# ("say", fact, value)
Op = tuple[Any, ...]
RANDOM_SUBSETS = 24
# Where writes are torn: at bytes of the first record's header and of a payload, in the middle, at the last byte.
_CUTS = (1, 4, 7, 8, 9, 20)
_GARBAGE = (b"", b"\0", b"\xff")


class RecordingDisk(MemoryDisk):
    """Records every call. ``during_sync`` is called during a sync, which does not cover what it writes."""

    def __init__(self, files: Contents | None = None, facts: dict[str, int] | None = None) -> None:
        super().__init__(files)
        self.trace: list[Op] = [("say", *fact) for fact in (facts or {}).items()]
        self.first_names = dict(self.files)
        self.first_data = {file: bytes(file.data) for file in self.files.values()}
        self.during_sync: Callable[[], None] | None = None

    def say(self, fact: str, value: int) -> None:
        """Record a fact that holds from here on."""
        self.trace.append(("say", fact, value))

    def create(self, name: str) -> int:
        existing = self.files.get(name)
        descriptor = super().create(name)
        file = self.open[descriptor]
        self.trace.append(("truncate", file, 0) if existing is not None else ("names", {name: file}))
        return descriptor

    def allocate(self, descriptor: int, size: int) -> None:
        super().allocate(descriptor, size)
        self.trace.append(("allocate", self.open[descriptor], size))

    def write(self, descriptor: int, data: bytes, offset: int) -> None:
        super().write(descriptor, data, offset)
        self.trace.append(("write", self.open[descriptor], offset, bytes(data)))

    def truncate(self, descriptor: int, size: int) -> None:
        super().truncate(descriptor, size)
        self.trace.append(("truncate", self.open[descriptor], size))

    def sync(self, descriptor: int) -> None:
        covered = len(self.trace)
        if self.during_sync is not None:
            call, self.during_sync = self.during_sync, None
            call()
        self.trace.append(("sync", self._of(descriptor), covered))

    def sync_directory(self) -> None:
        self.trace.append(("sync_names",))

    def rename(self, old: str, new: str) -> None:
        super().rename(old, new)
        self.trace.append(("names", {old: None, new: self.files[new]}))

    def remove(self, name: str) -> None:
        super().remove(name)
        self.trace.append(("names", {name: None}))


class FailingDisk(Failing, RecordingDisk):
    """Records, and fails on demand."""

    def sync(self, descriptor: int) -> None:
        try:
            super().sync(descriptor)
        except OSError:
            self.trace.append(("sync_failed", self._of(descriptor)))
            raise


class Crash:
    """The disk at one moment: what is certain, what is not, and the facts said so far."""

    def __init__(self, disk: RecordingDisk) -> None:
        self.names = dict(disk.first_names)
        self.data = dict(disk.first_data)
        self.pending: list[tuple[int, Op]] = []
        self.facts: dict[str, int] = {}

    def after(self, number: int, op: Op) -> None:
        """Apply operation ``number``."""
        match op:
            case "say", fact, value:
                self.facts[fact] = max(self.facts.get(fact, 0), value)
            case "sync_failed", file:
                # Linux then marks the pages as clean: a later sync succeeds, and they are lost.
                self.pending = [(at, each) for at, each in self.pending if each[0] != "write" or each[1] is not file]
            case "sync", file, covered:
                self._settle(lambda at, each: each[1] is file and at < covered)
            case ("sync_names",):
                self._settle(lambda at, each: each[0] == "names")
            case _:
                self.pending.append((number, op))

    def _settle(self, is_certain: Callable[[int, Op], bool]) -> None:
        certain = [op for at, op in self.pending if is_certain(at, op)]
        self.pending = [(at, op) for at, op in self.pending if not is_certain(at, op)]
        for op in certain:
            if op[0] == "names":
                _rename(self.names, op[1])
        data = _changed(self.data, certain)
        self.data.update(data)

    def left(self, kept: list[Op]) -> Contents:
        """Return the files if, of all pending operations, only ``kept`` happened."""
        names = dict(self.names)
        for op in kept:
            if op[0] == "names":
                _rename(names, op[1])
        changed = _changed(self.data, kept)
        return {name: changed.get(file) or self.data.get(file, b"") for name, file in names.items()}

    def states(self, chance: random.Random, *, brief: bool = False) -> Iterator[tuple[str, Contents]]:
        """Yield all states that may be left, each with the kind of loss. "all" is what a killed process leaves."""
        ops = [op for _, op in self.pending]
        yield "all", self.left(ops)
        yield "nothing", self.left([])
        for number, op in enumerate(ops):
            yield "one dropped", self.left(ops[:number] + ops[number + 1 :])
            yield "one alone", self.left([op])
        yield "metadata first", self.left([_size_only(op) for op in ops])
        yield "data first", self.left([op for op in ops if op[0] == "write"])
        yield "files first", self.left([op for op in ops if op[0] != "names"])
        writes = [number for number, op in enumerate(ops) if op[0] == "write"]
        for number in writes[-1:] if brief else writes[-4:]:
            for piece in torn(ops[number], () if brief else _CUTS):
                yield "torn", self.left([*ops[:number], piece, *ops[number + 1 :]])
                yield "torn alone", self.left([piece])
        if len(ops) > 2:
            for _ in range(RANDOM_SUBSETS // 6 if brief else RANDOM_SUBSETS):
                yield "subset", self.left([op for op in ops if chance.random() < 0.5])


def torn(write: Op, cuts: tuple[int, ...]) -> Iterator[Op]:
    """Yield a write of which only the first part happened (the rest is old, zeros, or garbage), or only the second."""
    _, file, offset, data = write
    size = len(data)
    for cut in sorted({cut for cut in (*cuts, size // 4, size // 2, size - 1) if 0 < cut < size}):
        for rest in _GARBAGE:
            yield "write", file, offset, data[:cut] + rest * (size - cut)
        yield "write", file, offset + cut, data[cut:]


def crashes(disk: RecordingDisk) -> Iterator[Crash]:
    """Yield the crash after each operation, with all facts that were recorded until the next."""
    crash = Crash(disk)
    for number, op in enumerate(disk.trace):
        if op[0] != "say":
            yield crash
        crash.after(number, op)
    yield crash


def _rename(names: dict[str, File], changes: dict[str, File | None]) -> None:
    for name, file in changes.items():
        if file is None:
            names.pop(name, None)
        else:
            names[name] = file


def _changed(before: dict[File, bytes], ops: list[Op]) -> dict[File, bytes]:
    changed: dict[File, bytearray] = {}
    for op in ops:
        if op[0] == "names":
            continue
        data = changed.get(op[1])
        if data is None:
            data = changed[op[1]] = bytearray(before.get(op[1], b""))
        _change(data, op)
    return {file: bytes(data) for file, data in changed.items()}


def _change(data: bytearray, op: Op) -> None:
    match op:
        case "write", _, offset, piece:
            data.extend(bytes(max(0, offset - len(data))))
            data[offset : offset + len(piece)] = piece
        case "allocate", _, size:
            data.extend(bytes(max(0, size - len(data))))
        case "truncate", _, size:
            del data[size:]
            data.extend(bytes(size - len(data)))


def _size_only(op: Op) -> Op:
    """Reduce a write to the growth of the file."""
    return ("allocate", op[1], op[2] + len(op[3])) if op[0] == "write" else op
