"""A disk in memory that writes down what it is asked to do, and what it may look like after a crash.

What is certain after a crash: the content of a file up to its last sync, the names up to the last sync of the
directory. Of everything else each piece may be there or not, in any order, and a write may be torn. That is more than
most file systems do to one; whoever stands it stands them.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

SECTOR = 512
Op = tuple[Any, ...]


@dataclass
class State:
    """Names, and what is behind them."""

    names: dict[str, int] = field(default_factory=dict)
    files: dict[int, bytearray] = field(default_factory=dict)

    def copy(self) -> "State":
        return State(dict(self.names), {number: bytearray(data) for number, data in self.files.items()})

    def apply(self, op: Op) -> None:
        """Do one thing that was asked for."""
        match op:
            case "create", number, name:
                self.names[name] = number
                self.files.setdefault(number, bytearray())
            case "write", number, offset, data:
                content = self.files.setdefault(number, bytearray())
                content.extend(bytes(max(0, offset + len(data) - len(content))))
                content[offset : offset + len(data)] = data
            case "allocate", number, size:
                content = self.files.setdefault(number, bytearray())
                content.extend(bytes(max(0, size - len(content))))
            case "truncate", number, size:
                content = self.files.setdefault(number, bytearray())
                del content[size:]
                content.extend(bytes(size - len(content)))
            case "rename", old, new:
                if old in self.names:
                    self.names[new] = self.names.pop(old)
            case "remove", name:
                self.names.pop(name, None)


class MemoryDisk:
    """The interface of kvd.journal.disk.Disk. ``trace`` has everything that was asked for."""

    directory = "memory"

    def __init__(self, state: State | None = None) -> None:
        self.state = state or State()
        self.trace: list[Op] = []
        self._next = max(self.state.files, default=0)

    def _do(self, *op: Any) -> None:  # noqa: ANN401 - any operation
        self.trace.append(op)
        self.state.apply(op)

    def path(self, name: str) -> str:
        return f"memory/{name}"

    def names(self) -> list[str]:
        return sorted(self.state.names)

    def size(self, name: str) -> int:
        return len(self.state.files[self.state.names[name]])

    def read(self, name: str) -> bytes:
        return bytes(self.state.files[self.state.names[name]])

    def create(self, name: str) -> int:
        self._next += 1
        self._do("create", self._next, name)
        return self._next

    def allocate(self, descriptor: int, size: int) -> None:
        self._do("allocate", descriptor, size)

    def write(self, descriptor: int, data: bytes, offset: int) -> None:
        self._do("write", descriptor, offset, bytes(data))

    def sync(self, descriptor: int) -> None:
        self._do("sync", descriptor)

    def sync_directory(self) -> None:
        self._do("sync_directory")

    def truncate(self, descriptor: int, size: int) -> None:
        self._do("truncate", descriptor, size)

    def close_file(self, descriptor: int) -> None:
        pass

    def rename(self, old: str, new: str) -> None:
        self._do("rename", old, new)

    def remove(self, name: str) -> None:
        self._do("remove", name)

    def acknowledge(self, version: int) -> None:
        """A marker: from here on, nothing up to ``version`` may be lost."""
        self.trace.append(("acknowledge", version))


_OF_NAMES = ("create", "rename", "remove")


def crash_states(trace: list[Op], prefix: int, chance: random.Random) -> Iterator[State]:
    """What the disk may look like if the power goes after ``prefix`` operations."""
    done = trace[:prefix]
    certain, optional = _split(done)
    base = State()
    for op in certain:
        base.apply(op)
    for kept in _choices(optional, chance):
        yield _with(base, kept)
    if optional and (torn := optional[-1])[0] == "write":
        yield from (_with(base, [*optional[:-1], piece]) for piece in _torn(torn, chance))


def _split(done: list[Op]) -> tuple[list[Op], list[Op]]:
    """What is certain to be on the disk, and what may be."""
    synced: dict[Any, int] = {}
    for at, op in enumerate(done):
        if op[0] == "sync":
            synced[op[1]] = at
        elif op[0] == "sync_directory":
            synced["names"] = at
    certain, optional = [], []
    for at, op in enumerate(done):
        if op[0] in ("sync", "sync_directory", "acknowledge"):
            continue
        key = "names" if op[0] in _OF_NAMES else op[1]
        (certain if at < synced.get(key, -1) else optional).append(op)
    return certain, optional


def _choices(optional: list[Op], chance: random.Random) -> Iterator[list[Op]]:
    yield []
    if not optional:
        return
    yield optional
    yield [op for op in optional if op[0] in _OF_NAMES]
    yield [op for op in optional if op[0] not in _OF_NAMES]
    for at in range(len(optional)):
        yield optional[:at] + optional[at + 1 :]
        yield [optional[at]]
    for _ in range(4):
        yield [op for op in optional if chance.random() < 0.5]


def _torn(write: Op, chance: random.Random) -> Iterator[Op]:
    _, number, offset, data = write
    cuts = {1, len(data) // 2, len(data) - 1, *(chance.randrange(len(data)) for _ in range(3))}
    for cut in sorted(cuts - {0}):
        yield "write", number, offset, data[:cut]
        yield "write", number, offset, data[:cut] + b"\0" * (len(data) - cut)
        yield "write", number, offset, data[:cut] + b"\xff" * (len(data) - cut)
        yield "write", number, offset + cut, data[cut:]


def _with(base: State, kept: list[Op]) -> State:
    state = base.copy()
    for op in kept:
        state.apply(op)
    return state
