"""What the files of a data directory are called.

0000000007.log          segment 7 of the commit log
0000000007.checkpoint   everything before segment 7, and perhaps some of it
*.tmp                   not finished: of no use to anybody, removed at the next start
lock                    held by the daemon that uses the directory
unfinished-copy         a restore or a salvage did not end: what is beside it is of no use
"""

_DIGITS = 10
LOCK = "lock"
UNFINISHED_COPY = "unfinished-copy"
_LOG, _CHECKPOINT, _UNFINISHED = ".log", ".checkpoint", ".tmp"


def log(number: int) -> str:
    """The name of a segment."""
    return f"{number:0{_DIGITS}d}{_LOG}"


def checkpoint(number: int) -> str:
    """The name of the checkpoint behind which segment ``number`` begins."""
    return f"{number:0{_DIGITS}d}{_CHECKPOINT}"


def unfinished(name: str) -> str:
    """What a file is called until it is whole."""
    return name + _UNFINISHED


def is_unfinished(name: str) -> bool:
    """Whether this is a leftover."""
    return name.endswith(_UNFINISHED)


def log_numbers(names: list[str]) -> list[int]:
    """The numbers of the segments among ``names``, in order."""
    return _numbers(names, _LOG)


def checkpoint_numbers(names: list[str]) -> list[int]:
    """The numbers of the checkpoints among ``names``, in order."""
    return _numbers(names, _CHECKPOINT)


def _numbers(names: list[str], suffix: str) -> list[int]:
    stems = [name.removesuffix(suffix) for name in names if name.endswith(suffix)]
    return sorted(int(stem) for stem in stems if len(stem) == _DIGITS and stem.isascii() and stem.isdigit())
