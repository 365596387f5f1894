"""The names of the files of a data directory.

0000000007.log          segment 7 of the commit log
0000000007.checkpoint   everything before segment 7, and perhaps some of it
NNNNNNNNNN.*.tmp        one of these, unfinished, useless, and removed at the next start
lock                    held by the daemon that uses the directory
lock.dirty              near caches may still trust a daemon that was killed (``kvd/service/restart_fence.py``)
unfinished-copy         a restore or salvage was interrupted: the other files are incomplete
"""

_DIGITS = 10
LOCK = "lock"
FENCE = "lock.dirty"  # the restart fence of a daemon that was killed (``kvd/service/restart_fence.py``)
LOST_AND_FOUND = "lost+found"  # in the root of each ext4 volume
UNFINISHED_COPY = "unfinished-copy"
_LOG, _CHECKPOINT, _UNFINISHED = ".log", ".checkpoint", ".tmp"


def log(number: int) -> str:
    """Return the name of a segment."""
    return f"{number:0{_DIGITS}d}{_LOG}"


def checkpoint(number: int) -> str:
    """Return the name of the checkpoint that segment ``number`` follows."""
    return f"{number:0{_DIGITS}d}{_CHECKPOINT}"


def unfinished(name: str) -> str:
    """Return the name of a file until it is complete."""
    return name + _UNFINISHED


def is_unfinished(name: str) -> bool:
    """Whether this is the name of an unfinished segment or checkpoint; no other file is ever removed."""
    finished = [name.removesuffix(_UNFINISHED)]
    return name.endswith(_UNFINISHED) and bool(_numbers(finished, _LOG) or _numbers(finished, _CHECKPOINT))


def is_ours(name: str) -> bool:
    """Whether a file of this name shows that the directory is a data directory."""
    finished = [name.removesuffix(_UNFINISHED)]
    return name == UNFINISHED_COPY or bool(_numbers(finished, _LOG) or _numbers(finished, _CHECKPOINT))


def log_numbers(names: list[str]) -> list[int]:
    """Return the numbers of the segments among ``names``, in order."""
    return _numbers(names, _LOG)


def checkpoint_numbers(names: list[str]) -> list[int]:
    """Return the numbers of the checkpoints among ``names``, in order."""
    return _numbers(names, _CHECKPOINT)


def _numbers(names: list[str], suffix: str) -> list[int]:
    stems = [name.removesuffix(suffix) for name in names if name.endswith(suffix)]
    return sorted(int(stem) for stem in stems if len(stem) == _DIGITS and stem.isascii() and stem.isdigit())
