"""Where the daemon's log goes: stderr (the journal under systemd), a file, or syslog. A record is always one line.

A client chooses some of the text, such as names and keys. That text must neither forge a line nor reach a terminal as
control characters.
"""

import io
import logging
import logging.handlers
import os
import select
import sys

from kvd.protocol import exits
from kvd.service.config.sections import Config
from kvd.service.errors import StartError, one_line
from kvd.service.log_rates import RateFilter
from kvd.service.systemd import is_journal
from kvd.service.trusted_files import open_log
from kvd.service.unix_socket import make_directory

SYSTEM_FILE = "/var/log/kvd.log"
SYSLOG_SOCKET = "/dev/log"
_PLAIN = "%(asctime)s %(levelname)s %(message)s"
# sd-daemon(3): a prefix that gives the line its priority in the journal.
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class OneLine(logging.Formatter):
    """Formats a record, its traceback included, as one line of printable characters."""

    def format(self, record: logging.LogRecord) -> str:
        return one_line(super().format(record))


class Journal(OneLine):
    """Formats a record as one line that starts with its priority in the journal."""

    def format(self, record: logging.LogRecord) -> str:
        return f"<{_PRIORITIES.get(record.levelno, 6)}>{super().format(record)}"


class NeverWaiting(logging.Handler):
    """Writes records, and drops those for which it would have to wait: a log that is not read must not stop the daemon.

    It counts what it drops, and says so before the next record that can be written. ``put`` raises OSError.
    """

    dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or count it. Never raises."""
        try:
            if self.dropped:
                self.put(self.format(_note(self.dropped)))
                self.dropped = 0
            self.put(self.format(record))
        except OSError as error:
            self.dropped += 1
            if self.dropped == 1 and not isinstance(error, BlockingIOError) and _takes_more(2):
                self.complain(record)
        except Exception:
            self.handleError(record)

    def put(self, text: str) -> None:
        """Write one line without waiting. Raises OSError."""
        raise NotImplementedError

    def complain(self, record: logging.LogRecord) -> None:
        """Show the first error of a row on stderr."""
        self.handleError(record)


def _note(dropped: int) -> logging.LogRecord:
    text = "%d lines of this log are missing here: it could not be written"
    return logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, (dropped,), None)


def _takes_more(descriptor: int) -> bool:
    """Return whether a write of PIPE_BUF bytes will not wait (or will fail at once)."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(0))


class Lines:
    """Lines to a descriptor that may be a pipe, a terminal or the journal's socket, and is shared with other processes.

    So it cannot be made non-blocking, and is asked before each piece.
    """

    def __init__(self) -> None:
        self._is_torn = False

    def write(self, descriptor: int, line: bytes) -> None:
        """Write one line. Raises BlockingIOError if it was not written, or not to its end, and OSError."""
        line = b"\n" * self._is_torn + line + b"\n"
        at = 0
        while at < len(line):
            if not _takes_more(descriptor):
                self._is_torn |= at > 0
                raise BlockingIOError
            at += os.write(descriptor, line[at : at + select.PIPE_BUF])
        self._is_torn = False


class StandardError(NeverWaiting):
    """Writes to stderr."""

    def __init__(self) -> None:
        super().__init__()
        self.stream = sys.stderr
        self._lines = Lines()

    def complain(self, record: logging.LogRecord) -> None:
        """Show nothing: stderr is what failed."""

    def put(self, text: str) -> None:
        """Write one line."""
        self._lines.write(self.stream.fileno(), text.encode(self.stream.encoding or "utf-8", "backslashreplace"))


class Syslog(NeverWaiting, logging.handlers.SysLogHandler):
    """Sends to syslog, whose socket is full if it is not read."""

    def _connect_unixsocket(self, address: str) -> None:
        super()._connect_unixsocket(address)  # type: ignore[misc]  # missing in the stubs
        self.socket.setblocking(False)  # type: ignore[attr-defined]  # missing in the stubs

    def put(self, text: str) -> None:
        """Send one line, to a new socket if syslog was started anew."""
        priority = self.encodePriority(self.facility, self.mapPriority(self._level))
        message = f"<{priority}>{text}\0".encode(errors="backslashreplace")
        try:
            self.socket.send(message)  # type: ignore[attr-defined]
        except BlockingIOError:
            raise
        except OSError:
            self.socket.close()  # type: ignore[attr-defined]
            self._connect_unixsocket(SYSLOG_SOCKET)
            self.socket.send(message)  # type: ignore[attr-defined]

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, whose level ``put`` needs."""
        self._level = record.levelname
        return super().format(record)


class LogFile(NeverWaiting, logging.handlers.WatchedFileHandler):
    """A log file that only its owner can read. It may be moved away at any time; the next record opens a new one.

    A record that cannot be written is lost, because the code that logs must not fail.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace")
        self._lines = Lines()
        self.setFormatter(OneLine(_PLAIN))

    def _open(self) -> io.TextIOWrapper:
        return open(self.baseFilename, "a", encoding="utf-8", errors="backslashreplace", opener=open_log)

    def put(self, text: str) -> None:
        """Write one line, past the stream's buffer, which would keep what could not be written."""
        self.reopenIfNeeded()
        if self.stream is None:  # the last attempt to open it failed
            self.stream = self._open()
        self._lines.write(self.stream.fileno(), text.encode(errors="backslashreplace"))


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
            handler = StandardError()
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
    handler = Syslog(SYSLOG_SOCKET, logging.handlers.SysLogHandler.LOG_DAEMON)
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
