"""Run a script of ``kv txn``.

One request reads all keys that the script reads, so they are of one instant. The statements run here, in order. Then
the daemon commits the writes, unless one of the keys that were read has changed meanwhile. After such a conflict all
of it is repeated. So only a check that does not hold, or conflicts without an end, refuse the transaction.
"""

from kv.cli.authors import entry_text
from kv.cli.commands.increment import number_in
from kv.cli.escape import show
from kv.cli.failures import CommandFailed
from kv.cli.statements import Statement
from kv.cli.writing import WriteOptions
from kvd.protocol import exits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from kv.blocking.client import Client
    from kv.results import Versioned

_MAX_ATTEMPTS = 30
_MAX_SHOWN = 60
_DEFAULTS = WriteOptions()


class CheckFailed(Exception):
    """A check does not hold: against what the daemon has, or, if ``is_own``, against an earlier write of the script."""

    def __init__(self, statement: Statement, current: "Versioned", is_own: bool) -> None:
        super().__init__(statement.key)
        self.statement = statement
        self.current = current
        self.is_own = is_own


class Outcome:
    """What a script writes, and what it shows, run on the ``reads`` of one instant."""

    def __init__(self, reads: "dict[str, Versioned]") -> None:
        self.reads = reads
        self.writes: dict[str, bytes | None] = {}
        self.shown: list[tuple[str, bytes | None]] = []

    def apply(self, statement: Statement) -> None:
        """Run one statement. Raises CheckFailed; CommandFailed if incr meets a value that is no number."""
        key, argument = statement.key, statement.argument
        if statement.verb == "get":
            self.shown.append((key, self._value(key)))
        elif statement.verb == "set":
            assert isinstance(argument, bytes)
            self.writes[key] = argument
        elif statement.verb == "del":
            self.writes[key] = None
        elif statement.verb == "incr":
            self._increment(statement)
        elif not self._holds(statement):
            raise CheckFailed(statement, self.reads[key], is_own=key in self.writes)

    def _value(self, key: str) -> bytes | None:
        return self.writes[key] if key in self.writes else self.reads[key].value

    def _holds(self, statement: Statement) -> bool:
        value = self._value(statement.key)
        if statement.verb == "version":
            # A write of the script itself has no version yet.
            return statement.key not in self.writes and self.reads[statement.key].version == statement.argument
        if statement.verb == "=":
            return value is not None and value == statement.argument
        return (value is None) == (statement.verb == "absent")

    def _increment(self, statement: Statement) -> None:
        assert isinstance(statement.argument, int)
        number = number_in(self._value(statement.key))
        if number is None or not -(1 << 63) <= number + statement.argument < 1 << 63:
            raise CommandFailed(
                f"line {statement.line}: {statement.key} is not a decimal number of 64 bits, or would not stay one; "
                "nothing was written"
            )
        self.writes[statement.key] = str(number + statement.argument).encode()
        self.shown.append((statement.key, self.writes[statement.key]))


def _commit(
    client: "Client", writes: "Mapping[str, bytes | None]", reads: dict[str, int], options: WriteOptions
) -> int:
    return client.commit(writes, reads=reads, ttl=options.ttl_s, keep_ttl=options.keep_ttl, sync=options.sync)


def carry_out(
    client: "Client",
    statements: list[Statement],
    *,
    dry_run: bool = False,
    options: WriteOptions = _DEFAULTS,
) -> tuple[Outcome, int | None]:
    """Run the script. Return the outcome, and the version of its commit, None without one.

    Raises CommandFailed, KvdError.
    """
    from kv.blocking.steps import retry_on_conflict

    keys = list(dict.fromkeys(each.key for each in statements if each.verb not in ("set", "del")))

    def attempt() -> tuple[Outcome, int | None]:
        outcome = Outcome(client.fetch(keys) if keys else {})
        try:
            for statement in statements:
                outcome.apply(statement)
        except CheckFailed as failed:
            raise CommandFailed(_refusal(client, failed), exits.CONFLICT) from None
        if not outcome.writes or dry_run:
            return outcome, None
        reads = {key: item.version for key, item in outcome.reads.items()}
        return outcome, _commit(client, outcome.writes, reads, options)

    return retry_on_conflict(attempt, _MAX_ATTEMPTS)


def _refusal(client: "Client", failed: CheckFailed) -> str:
    """Return the text: which check does not hold, what is there instead, since when, and by whom."""
    statement = failed.statement
    begin, end = f"line {statement.line}: the check does not hold: ", "; nothing was written"
    if failed.is_own:
        return f"{begin}{statement.key} has been written by a statement before it{end}"
    return f"{begin}{_current_text(client, failed)}{end}"


def _current_text(client: "Client", failed: CheckFailed) -> str:
    from kv.results import ConflictEntry

    statement, current = failed.statement, failed.current
    last = next(iter(client.history(statement.key, limit=1)), None)
    time_us, author = (None, None) if last is None else (last.time, last.author)
    expected = statement.argument if isinstance(statement.argument, int) else 0
    text = entry_text(ConflictEntry(statement.key, expected, current.version, time_us, author))
    if statement.verb in ("version", "absent"):
        return text
    wanted = "there" if statement.verb == "exists" else f"'{_short(statement.argument)}'"
    return text.replace(", not absent", f", not {wanted}", 1)


def _short(value: object) -> str:
    text = show(value if isinstance(value, bytes) else b"")
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…"
