"""Where the daemon's log goes: stderr (the journal under systemd), a file, or syslog. A record is always one line.

A client chooses some of the text, such as names and keys. That text must neither forge a line nor reach a terminal as
control characters.
"""

import io
import logging
import logging.handlers
import os
import sys

from kvd.protocol import exits
from kvd.service.config.sections import Config
from kvd.service.errors import StartError
from kvd.service.log_rates import RateFilter
from kvd.service.systemd import is_journal
from kvd.service.unix_socket import make_directory

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
    """Formats a record as one line that starts with its priority in the journal."""

    def format(self, record: logging.LogRecord) -> str:
        return f"<{_PRIORITIES.get(record.levelno, 6)}>{super().format(record)}"


class LogFile(logging.handlers.WatchedFileHandler):
    """A log file that only its owner can read. It may be moved away at any time; the next record opens a new one.

    A record that cannot be written is lost, because the code that logs must not fail.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace")
        self.setFormatter(OneLine(_PLAIN))

    def _open(self) -> io.TextIOWrapper:
        return open(self.baseFilename, "a", encoding="utf-8", errors="backslashreplace", opener=_open_private)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)


def _open_private(path: str, flags: int) -> int:
    # A FIFO without a reader must be rejected, not waited for.
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY, 0o600)


def log_target(config: Config, *, daemon: bool) -> str:
    """Return ``stderr``, ``syslog`` or a file's path, also for ``auto``. Raises StartError: a daemon has no stderr."""
    target = config.log.to
    if target == "stderr" and daemon:
        text = "log.to: a daemon has no stderr; use a file, syslog or auto, or serve in the foreground"
        raise StartError(exits.CONFIGURATION, text)
    if target != "auto":
        return target
    if not daemon:
        return "stderr"
    return SYSTEM_FILE if os.getuid() == 0 else os.path.expanduser("~/.local/state/kvd/kvd.log")


def open_handler(target: str) -> logging.Handler:
    """Return a handler for ``target``. It opens the file now, while a person sees the error. Raises StartError."""
    handler: logging.Handler
    try:
        if target == "stderr":
            handler = logging.StreamHandler(sys.stderr)
            handler.setFormatter(Journal("%(message)s") if is_journal(2) else OneLine(_PLAIN))
        elif target == "syslog":
            handler = _syslog_handler()
        else:
            make_directory(target)
            handler = LogFile(target)
    except OSError as error:
        raise StartError(exits.IO_ERROR, f"cannot write the log to {target}: {error.strerror or error}") from None
    return handler


def _syslog_handler() -> logging.Handler:
    handler = logging.handlers.SysLogHandler(SYSLOG_SOCKET, logging.handlers.SysLogHandler.LOG_DAEMON)
    # Without syslog the handler raises nothing, and would try again for each record.
    if descriptors(handler) == [-1]:
        text = f"cannot write the log to syslog: no process listens at {SYSLOG_SOCKET}"
        raise StartError(exits.IO_ERROR, text)
    handler.setFormatter(OneLine("kvd[%(process)d]: %(message)s"))
    return handler


def descriptors(handler: logging.Handler) -> list[int]:
    """The descriptors of ``handler``, which must stay open when the daemon closes all others."""
    if isinstance(handler, logging.handlers.SysLogHandler):
        return [handler.socket.fileno()]  # type: ignore[attr-defined]  # missing in the stubs
    stream = getattr(handler, "stream", None)
    return [stream.fileno()] if stream is not None else []


def start(handler: logging.Handler, config: Config) -> None:
    """Send every record of this process to ``handler``."""
    root = logging.getLogger()
    for other in list(root.handlers):
        root.removeHandler(other)
    handler.addFilter(RateFilter())
    root.addHandler(handler)
    apply_level(config)


def apply_level(config: Config) -> None:
    """Set the level that ``config`` asks for, at the start and on reload."""
    logging.getLogger().setLevel(config.log.level.upper())
