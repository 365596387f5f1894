"""Where the daemon's logging goes: stderr (the journal under systemd), a file, or syslog. One line a record, always.

What a peer can put into a message, a name or a key, must not forge a line or reach a terminal as control characters.
"""

import logging
import logging.handlers
import os
import sys

from kvd.service.config import Config
from kvd.service.errors import EXIT_IO_ERROR, StartError
from kvd.service.systemd import is_journal

SYSTEM_FILE = "/var/log/kvd.log"
SYSLOG_SOCKET = "/dev/log"
_PLAIN = "%(asctime)s %(levelname)s %(message)s"
# sd-daemon(3): a prefix that gives the line its priority in the journal.
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class OneLine(logging.Formatter):
    """Formats a record, its traceback included, as one line of printable characters."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class Journal(OneLine):
    """One line with the journal's priority in front."""

    def format(self, record: logging.LogRecord) -> str:
        return f"<{_PRIORITIES.get(record.levelno, 6)}>{super().format(record)}"


def log_target(config: Config, *, daemon: bool) -> str:
    """``stderr``, ``syslog`` or a file's path: what ``auto`` stands for, and relative paths made absolute."""
    target = config.log.to
    if target != "auto":
        return target if target in ("stderr", "syslog") else os.path.abspath(target)
    if not daemon:
        return "stderr"
    return SYSTEM_FILE if os.getuid() == 0 else os.path.expanduser("~/.local/state/kvd/kvd.log")


def open_handler(target: str) -> logging.Handler:
    """A handler for ``target``; opens its file, so errors show while somebody is there to see. Raises StartError."""
    handler: logging.Handler
    try:
        if target == "stderr":
            handler = logging.StreamHandler(sys.stderr)
            handler.setFormatter(Journal("%(message)s") if is_journal(2) else OneLine(_PLAIN))
        elif target == "syslog":
            handler = logging.handlers.SysLogHandler(SYSLOG_SOCKET)
            handler.setFormatter(OneLine("kvd[%(process)d]: %(message)s"))
        else:
            os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
            os.close(os.open(target, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600))
            # Looks at each record whether the file was moved away (logrotate), and opens it anew.
            handler = logging.handlers.WatchedFileHandler(target)
            handler.setFormatter(OneLine(_PLAIN))
    except OSError as error:
        raise StartError(EXIT_IO_ERROR, f"cannot write the log to {target}: {error.strerror or error}") from None
    return handler


def descriptors(handler: logging.Handler) -> list[int]:
    """What of ``handler`` must stay open when the daemon closes everything else."""
    if isinstance(handler, logging.handlers.SysLogHandler):
        return [handler.socket.fileno()]  # type: ignore[attr-defined]  # the stubs forget it
    stream = getattr(handler, "stream", None)
    return [stream.fileno()] if stream is not None else []


def start(handler: logging.Handler, config: Config) -> None:
    """Send all logging of the process to ``handler``."""
    root = logging.getLogger()
    for other in list(root.handlers):
        root.removeHandler(other)
    root.addHandler(handler)
    apply_level(config)


def apply_level(config: Config) -> None:
    """Set the level, at the start and on reload."""
    logging.getLogger().setLevel(config.log.level.upper())
