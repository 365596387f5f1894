"""Running a command beside kv: started by the system's posix_spawn, which needs no module that takes long to import.

What is open in kv is closed in the command (descriptors of ours are not inherited, PEP 446), so the command cannot hold
kv's connection to the daemon open.
"""

import os
import signal

from kv.cli.failures import CommandFailed
from kvd.protocol import exits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from kv.cli.parser import CommonOptions

# What Python itself ignores, and a command expects to be as usual.
_USUAL = (signal.SIGPIPE, signal.SIGXFSZ)


def start(words: list[str], environment: "Mapping[str, str | bytes]", stdin: int | None = None) -> int:
    """Start a command, with no signal blocked; its process id. Raises CommandFailed, with the usual 126 and 127."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # who ignores it is not told how children end
    actions = [] if stdin is None else [(os.POSIX_SPAWN_DUP2, stdin, 0)]
    try:
        return os.posix_spawnp(
            words[0], words, environment, file_actions=actions, setsigmask=(), setsigdef=_USUAL
        )  # fmt: skip
    except (FileNotFoundError, NotADirectoryError):
        raise CommandFailed(f"no such command: {words[0]}", exits.NO_SUCH_COMMAND) from None
    except ValueError as error:  # a zero byte in an argument or in the environment
        raise CommandFailed(f"cannot run {words[0]}: {error}", exits.NOT_EXECUTABLE) from None
    except OSError as error:
        raise CommandFailed(f"cannot run {words[0]}: {error.strerror}", exits.NOT_EXECUTABLE) from None


def status_of(process: int) -> int:
    """Wait for its end; its exit code, 128 + the signal's number if it was killed, as shells have it."""
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return code if code >= 0 else 128 - code


def input_of(data: bytes) -> int:
    """A descriptor from which ``data`` can be read: a file in memory, which nobody has to feed."""
    descriptor = os.memfd_create("value", os.MFD_CLOEXEC)
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def environment(options: "CommonOptions", **more: "str | bytes | None") -> "dict[str, str | bytes]":
    """Ours, with ``more`` in it (None: not there), and the daemon that was named on the command line."""
    found: dict[str, str | bytes] = dict(os.environ)
    named = {"KVD_SOCKET": options.socket, "KVD_TOKEN_FILE": options.token_file}
    found.update((name, value) for name, value in named.items() if value is not None)
    for name, value in more.items():
        found.pop(name, None)
        if value is not None:
            found[name] = value
    return found
