"""Run a command as a child of kv, by the system's posix_spawn, which needs no module that is slow to import.

The command inherits none of kv's descriptors (PEP 446), so it cannot keep kv's connection to the daemon open.
"""

import errno
import os
import signal

from kv.cli.failures import CommandFailed
from kv.cli.output import write_all
from kvd.protocol import exits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from kv.cli.parser import CommonOptions

# Python ignores these signals; a command expects their default actions.
_DEFAULT_ACTIONS = (signal.SIGPIPE, signal.SIGXFSZ)


def start(words: list[str], environment: "Mapping[str, str | bytes]", stdin: int | None = None) -> int:
    """Start a command with no signal blocked, and return its process id.

    Raises CommandFailed with the exit codes that shells use: 126 and 127.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # while it is ignored, the kernel reports no exit codes
    actions = [] if stdin is None else [(os.POSIX_SPAWN_DUP2, stdin, 0)]
    try:
        return os.posix_spawnp(
            words[0], words, environment, file_actions=actions, setsigmask=(), setsigdef=_DEFAULT_ACTIONS
        )  # fmt: skip
    except (FileNotFoundError, NotADirectoryError):
        raise CommandFailed(f"no such command: {words[0]}", exits.NO_SUCH_COMMAND) from None
    except ValueError as error:  # a zero byte in an argument or in the environment
        raise CommandFailed(f"cannot run {words[0]}: {error}", exits.NOT_EXECUTABLE) from None
    except OSError as error:
        raise CommandFailed(f"cannot run {words[0]}: {error.strerror}", exits.NOT_EXECUTABLE) from None


def check_command(word: str) -> None:
    """Raise CommandFailed as ``start`` would if there is no such command, or it cannot be run."""
    paths = [word] if "/" in word else [os.path.join(folder, word) for folder in os.get_exec_path()]
    found = [path for path in paths if os.path.exists(path)]
    if not found:
        raise CommandFailed(f"no such command: {word}", exits.NO_SUCH_COMMAND)
    if not any(os.path.isfile(path) and os.access(path, os.X_OK) for path in found):
        raise CommandFailed(f"cannot run {word}: {os.strerror(errno.EACCES)}", exits.NOT_EXECUTABLE)


def exit_code_of(process: int) -> int:
    """Wait for the end of a process. Return its exit code; 128 + N, as shells do, if signal N ended it."""
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return code if code >= 0 else 128 - code


def memory_file(data: bytes) -> int:
    """Return a descriptor from which ``data`` can be read: a file in memory, so that no process has to write it."""
    descriptor = os.memfd_create("value", os.MFD_CLOEXEC)
    write_all(descriptor, data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def environment(options: "CommonOptions", **more: "str | bytes | None") -> "dict[str, str | bytes]":
    """Return kv's environment for a command: with the daemon of the command line, and with ``more`` (None: removed)."""
    variables: dict[str, str | bytes] = dict(os.environ)
    daemon = {"KVD_SOCKET": options.socket, "KVD_TOKEN_FILE": options.token_file}
    variables.update((name, value) for name, value in daemon.items() if value is not None)
    for name, value in more.items():
        variables.pop(name, None)
        if value is not None:
            variables[name] = value
    return variables
