"""TAB completion with a daemon that holds many keys: the whole process that the shell function starts."""

import os
from collections.abc import Iterator
from pathlib import Path

from bench.command import kv_command
from bench.context import Context
from bench.data import Items
from bench.errors import BenchError
from bench.process import clean_environment, whole_process_ms
from bench.rows import Row, Samples, Target
from bench.servers import Server

_RUNS = 40
_WARM_UP = 3
_LIMIT_MS = 100.0
SEPARATOR = "\013"
_NULL = Path(os.devnull)
_USERS: Items = {f"user:{n}": b"%d" % n for n in range(20)}


def tab(context: Context) -> Iterator[Row]:
    """TAB where few keys match (`kv get us`), and where nearly all keys match (`kv get ke`)."""
    with context.fresh(context.kvd) as server:
        server.load(context.many_keys)
        server.try_once(context.kvd.load_batch(_USERS))
        for word in ("us", "ke"):
            yield press(context, server, word)


def press(context: Context, server: Server, word: str) -> Row:
    """Complete `kv get WORD` many times."""
    candidates = context.new_directory() / "candidates"
    env = clean_environment() | shell_function_environment(f"kv get {word}") | {"KVD_SOCKET": str(server.socket)}
    outputs = {1: _NULL, 2: _NULL, 8: candidates, 9: _NULL}
    took_ms: list[float] = []
    for _ in range(_WARM_UP + max(20, context.work(_RUNS))):
        took_ms.append(whole_process_ms(kv_command(), env, outputs))
        offered = candidates.read_text().split(SEPARATOR)
        if not offered[0].startswith(word):
            raise BenchError(f"TAB after `kv get {word}` offered {offered[:3]!r}")
    title = f"TAB after `kv get {word}`, {context.many_keys:,} keys"
    target = Target("<=", _LIMIT_MS, of="value")
    return Row(
        title,
        "ms",
        Samples("kvd", tuple(took_ms[_WARM_UP:])),
        None,
        target,
        f"{len(offered)} candidates, first press {took_ms[0]:.0f} ms",
    )


def shell_function_environment(line: str) -> dict[str, str]:
    """The variables that argcomplete's bash function sets before it starts the command."""
    return {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_SHELL": "bash",
        "_ARGCOMPLETE_COMP_WORDBREAKS": " \t\n\"'><=;|&(:",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "_ARGCOMPLETE_IFS": SEPARATOR,
        "IFS": SEPARATOR,
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
    }
