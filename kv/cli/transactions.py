"""What a script of ``kv txn`` does.

All that it reads is read in one request, so of one instant; the script is gone through here; and the daemon commits
what it writes if none of that has changed meanwhile. If it has, the whole is done again, so only a check that does not
hold ends with a refusal.
"""

from kv.cli.authors import entry_text
from kv.cli.commands.increment import number_in
from kv.cli.escape import show
from kv.cli.failures import CommandFailed
from kv.cli.statements import Statement
from kvd.protocol import exits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from kv.blocking.client import Client
    from kv.cli.writing import WriteOptions
    from kv.results import Versioned

_MAX_ATTEMPTS = 30
_MAX_SHOWN = 60


class CheckFailed(Exception):
    """A check does not hold: at what was ``found``, or, if ``own``, at what the script has written before."""

    def __init__(self, statement: Statement, found: "Versioned", own: bool) -> None:
        super().__init__(statement.key)
        self.statement = statement
        self.found = found
        self.own = own


class Outcome:
    """What a script reads and writes, gone through with what was ``found``."""

    def __init__(self, found: "dict[str, Versioned]") -> None:
        self.found = found
        self.writes: dict[str, bytes | None] = {}
        self.shown: list[tuple[str, bytes | None]] = []

    def take(self, statement: Statement) -> None:
        """Go through one statement. Raises CheckFailed; CommandFailed if incr meets no number."""
        key, argument = statement.key, statement.argument
        if statement.does == "get":
            self.shown.append((key, self._value(key)))
        elif statement.does == "set":
            assert isinstance(argument, bytes)
            self.writes[key] = argument
        elif statement.does == "del":
            self.writes[key] = None
        elif statement.does == "incr":
            self._increment(statement)
        elif not self._holds(statement):
            raise CheckFailed(statement, self.found[key], own=key in self.writes)

    def _value(self, key: str) -> bytes | None:
        return self.writes[key] if key in self.writes else self.found[key].value

    def _holds(self, statement: Statement) -> bool:
        value = self._value(statement.key)
        if statement.does == "version":
            # What the script itself has written has no version yet.
            return statement.key not in self.writes and self.found[statement.key].version == statement.argument
        if statement.does == "=":
            return value is not None and value == statement.argument
        return (value is None) == (statement.does == "absent")

    def _increment(self, statement: Statement) -> None:
        assert isinstance(statement.argument, int)
        number = number_in(self._value(statement.key))
        if number is None or not -(1 << 63) <= number + statement.argument < 1 << 63:
            raise CommandFailed(
                f"line {statement.line}: {statement.key} is not a decimal number of 64 bits, or would be none; "
                "nothing was written"
            )
        self.writes[statement.key] = str(number + statement.argument).encode()
        self.shown.append((statement.key, self.writes[statement.key]))


def _commit(
    client: "Client", writes: "Mapping[str, bytes | None]", reads: dict[str, int], options: "WriteOptions | None"
) -> int:
    if options is None:
        return client.commit(writes, reads=reads)
    return client.commit(writes, reads=reads, ttl=options.ttl_s, keep_ttl=options.keep_ttl, sync=options.sync)


def carry_out(
    client: "Client",
    statements: list[Statement],
    *,
    dry_run: bool = False,
    options: "WriteOptions | None" = None,
) -> tuple[Outcome, int | None]:
    """The outcome, and the version of its commit, if there was one to make. Raises CommandFailed, KvdError."""
    from kv.blocking.steps import retry_on_conflict

    keys = list(dict.fromkeys(each.key for each in statements if each.does not in ("set", "del")))

    def attempt() -> tuple[Outcome, int | None]:
        outcome = Outcome(client.fetch(keys) if keys else {})
        try:
            for statement in statements:
                outcome.take(statement)
        except CheckFailed as failed:
            raise CommandFailed(_refusal(client, failed), exits.CONFLICT) from None
        if not outcome.writes or dry_run:
            return outcome, None
        reads = {key: found.version for key, found in outcome.found.items()}
        return outcome, _commit(client, outcome.writes, reads, options)

    return retry_on_conflict(attempt, _MAX_ATTEMPTS)


def _refusal(client: "Client", failed: CheckFailed) -> str:
    """Which check does not hold, what is there instead, since when and by whom."""
    statement = failed.statement
    begin, end = f"line {statement.line}: the check does not hold: ", "; nothing was written"
    if failed.own:
        return f"{begin}{statement.key} has been written by a statement before it{end}"
    return f"{begin}{_what_is_there(client, failed)}{end}"


def _what_is_there(client: "Client", failed: CheckFailed) -> str:
    from kv.results import ConflictEntry

    statement, found = failed.statement, failed.found
    last = next(iter(client.history(statement.key, limit=1)), None)
    time_us, author = (None, None) if last is None else (last.time, last.author)
    expected = statement.argument if isinstance(statement.argument, int) else 0
    text = entry_text(ConflictEntry(statement.key, expected, found.version, time_us, author))
    if statement.does in ("version", "absent"):
        return text
    wanted = "there" if statement.does == "exists" else f"'{_short(statement.argument)}'"
    return text.replace(", not absent", f", not {wanted}", 1)


def _short(value: object) -> str:
    text = show(value if isinstance(value, bytes) else b"")
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…"
