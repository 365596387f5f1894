"""The exit codes of ``kv``, ``kv serve`` included: an interface for scripts. Codes may be added, never changed.

Where sysexits.h has a fitting code, it is that one.
"""

OK = 0
NOT_FOUND = 1
FAILURE = 1  # of ``kv serve`` and of the commands that work on a data directory, for what has no code of its own
USAGE = 2
CONFLICT = 3
DENIED = 4
SERVER_ERROR = 5
DAMAGED_DATA = 65
UNREACHABLE = 69
INTERNAL = 70
IO_ERROR = 74
ALREADY_RUNNING = 75
CONFIGURATION = 78
LOCK_LOST = 79
NOT_EXECUTABLE = 126
NO_SUCH_COMMAND = 127
INTERRUPTED = 130
PIPE_CLOSED = 141

MEANINGS = {
    OK: "done",
    NOT_FOUND: "a key was not found, or the answer is no",
    USAGE: "wrong usage: the command line or the input given to it",
    CONFLICT: "conflict or refused condition; nothing was written",
    DENIED: "permission denied",
    SERVER_ERROR: "time-out, a limit, or another error of the server",
    DAMAGED_DATA: "serve, check, restore: damaged data",
    UNREACHABLE: "the daemon cannot be reached",
    INTERNAL: "a fault in kv itself; please report it",
    IO_ERROR: "input or output failed (a full disk, a closed descriptor)",
    ALREADY_RUNNING: "serve, check, restore: a daemon is running there",
    CONFIGURATION: "serve: the configuration is wrong; restore: the directory is not ours",
    LOCK_LOST: "lock: the lock was lost while the command ran",
    NOT_EXECUTABLE: "lock, watch: the command cannot be run (otherwise lock ends as its command did)",
    NO_SUCH_COMMAND: "lock, watch: there is no such command",
    INTERRUPTED: "ended by ctrl-c",
    PIPE_CLOSED: "the reader of the output closed the pipe",
}

# Of the codes that an error carries; every other one is SERVER_ERROR.
_BY_ERROR_CODE = {
    "not_found": NOT_FOUND,
    "conflict": CONFLICT,
    "forbidden": DENIED,
    "unauthenticated": DENIED,
    "unavailable": UNREACHABLE,
    "lock_lost": LOCK_LOST,
    "token_file": USAGE,
    "tls": USAGE,
}


def exit_code_for(error_code: str) -> int:
    """Return the exit code for the code of a KvdError."""
    return _BY_ERROR_CODE.get(error_code, SERVER_ERROR)
