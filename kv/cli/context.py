"""The context of a command: where it prints, and how it reaches the daemon."""

import os

from kv.cli.failures import UsageError
from kv.cli.output import Output, warn
from kv.cli.parser import DEFAULT_TIMEOUT_S, CommonOptions
from kvd.protocol.address import normalize

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kv.blocking.client import Client
    from kv.cli.points import HistoryPoint
    from kvd.service.progress import ProgressBar


class Context:
    """One run of one command; ``options`` are those that every command has."""

    def __init__(self, options: CommonOptions, output: Output) -> None:
        self.options = options
        self.output = output
        output.quiet = options.quiet

    def connect(self, default_timeout_s: float = DEFAULT_TIMEOUT_S, *, waits: bool = False) -> "Client":
        """Return a client for the daemon that the options name. It connects with its first request.

        ``waits``: the command waits for an event, and --timeout limits that wait, not the wait for the daemon.
        """
        from kv.blocking.client import Client
        from kv.wire.codecs import light

        timeout_s = self.options.timeout_s(default_timeout_s, flag=not waits)
        try:
            if self.options.socket is None and (configured := os.environ.get("KVD_SOCKET")):
                normalize(configured)
            return Client(self.options.socket, timeout=timeout_s, token_file=self.options.token_file, codec=light())
        except ValueError as error:
            raise UsageError(f"{error}; write a socket's path, tcp://HOST:PORT or tls://HOST:PORT") from None

    def progress(self, unit: str, label: str) -> "ProgressBar":
        """``with context.progress("B", "restoring") as bar:``, and ``bar.update(done, total)`` now and then."""
        from kv.cli.progress import progress_bar

        return progress_bar(unit, label, quiet=self.options.quiet)

    def print(self, text: str) -> None:
        """Print one line; the caller has made ``text`` safe to show."""
        self.output.line(text)

    def print_json(self, thing: object) -> None:
        """Print ``thing`` as one line of JSON."""
        from kv.cli.jsontext import dump

        self.output.line(dump(thing))

    def note(self, text: str) -> None:
        """Print one line on stderr, with --verbose only."""
        if self.options.verbose and not self.options.quiet:
            warn(text)

    def warn(self, text: str) -> None:
        """Print one line on stderr, after the output so far, unless --quiet."""
        if not self.options.quiet:
            self.output.flush()
            warn(text)

    def warn_missing(self, keys: list[str]) -> None:
        """Name the missing keys on stderr, after the output so far."""
        for key in keys:
            self.warn(f"error: no such key: {key}")

    def warn_nul(self, key: str) -> None:
        """Name a key that is not printed, because another program would take the NUL byte in it for its end."""
        self.warn(f"error: the key {key} has a NUL byte in it and is not printed; use --json")


def history_point(text: str | None, option: str) -> "HistoryPoint | None":
    """Return the point in the history that ``text``, the value of ``option``, names. Raises UsageError."""
    if text is None:
        return None
    from kv.cli.points import HistoryPoint

    return HistoryPoint(text, option)


def checked_keys(operands: list[str], command: str) -> list[str]:
    """Return the operands as keys: at least one, none empty, each UTF-8. Raises UsageError."""
    if not operands:
        raise UsageError(f"no keys given; write 'kv {command} KEY...'")
    return [checked_key(operand) for operand in operands]


def checked_prefix(*arguments: str) -> str:
    """Return the argument of the command line that is a prefix of keys, or "" without one. Raises UsageError."""
    if len(arguments) > 1:
        raise UsageError(f"one prefix at a time: {arguments[1]!r} is too many")
    return checked_key(arguments[0]) if arguments and arguments[0] else ""


def checked_key(argument: str) -> str:
    """Return an argument of the command line as a key. Raises UsageError."""
    if not argument:
        raise UsageError("a key cannot be empty")
    return checked_text(argument, "a key")


def checked_text(argument: str, what: str) -> str:
    """Return an argument of the command line as text, which is UTF-8 whatever the locale. Raises UsageError."""
    import os

    try:
        return os.fsencode(argument).decode()
    except UnicodeDecodeError:
        raise UsageError(f"{what} must be UTF-8, which this is not: {argument}") from None
