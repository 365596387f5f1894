"""``kv wait``: wait until a key exists, has a value, or is gone."""

import os
import time

from kv.cli.commands.get import ValueForms, add_forms, print_values
from kv.cli.context import Context, checked_key
from kv.cli.failures import CommandFailed, UsageError
from kv.cli.parser import Parser, set_completer
from kv.cli.patience import Patience
from kvd.protocol import exits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kv.blocking.client import Client
    from kv.results import Change

USAGE = """\
kv wait [OPTION]... KEY[=VALUE]
       kv wait [OPTION]... --key KEY [--value VALUE]"""
EXAMPLES = """
kv wait ready                       until there is such a key; prints it as 'kv get' does
kv wait state=done                  until it has that value
kv wait --absent state=running      until it does not have that value
kv wait --absent maintenance        until there is no such key
kv wait -q --timeout 30 ready || echo 'not within 30 seconds'
kv wait --key 'a=b' --value '-'     any key, any value
"""
DETAILS = """
If it is so already, it returns at once. Without --timeout it waits for ever; when the time is over the exit code is
5. It waits for a daemon in the same way; if there was none in all the time, the exit code is 69. A change is not
missed, however short the key was so. With --absent nothing is printed.
"""


class Options(ValueForms):
    """The options of ``kv wait``."""

    absent: bool = False


def arguments(parser: Parser) -> None:
    """The options of ``kv wait``."""
    parser.operands("KEY[=VALUE]", "the key, and the value that it shall have; the first '=' ends the key", "keys")
    parser.verbatim = ("--key", "--value")
    set_completer(parser.add_argument("--key", metavar="KEY", help="the key, as it is"), "keys")
    parser.add_argument("--value", metavar="VALUE", help="the value that the --key shall have, as it is")
    parser.add_argument("--absent", action="store_true", help="until it is not so")
    add_forms(parser)


def run(context: Context, options: Options) -> int:
    """Wait, and print the value as ``kv get`` does."""
    key, wanted = _condition(options)
    limit_s = options.timeout or None
    with context.connect(waits=True) as client:
        value = until(client, key, wanted, absent=options.absent, limit_s=limit_s, context=context)
    if not options.absent and value is not None:
        print_values(context, options, {key: value}, [key])
    return exits.OK


def _condition(options: Options) -> tuple[str, bytes | None]:
    """Return the key, and the value to wait for; None: any value. Raises UsageError."""
    operands = options.operands
    keys, values = options.verbatim["--key"], options.verbatim["--value"]
    if keys and not operands and len(keys) == 1 and len(values) <= 1:
        return checked_key(keys[0]), os.fsencode(values[0]) if values else None
    if keys or values or len(operands) != 1:
        raise UsageError("give one condition: KEY, KEY=VALUE, or --key KEY with or without --value VALUE")
    key, equals, value = operands[0].partition("=")
    return checked_key(key), os.fsencode(value) if equals else None


def until(
    client: "Client", key: str, wanted: bytes | None, *, absent: bool, limit_s: float | None,
    context: "Context | None" = None,
) -> bytes | None:  # fmt: skip
    """Wait until the condition holds; return the value of ``key`` then. Raises CommandFailed when the time is over.

    Without a daemon it waits for one, and raises Unavailable if there was none in all the time.
    """
    end = None if limit_s is None else time.monotonic() + limit_s
    patience = Patience(context, limit_s)
    value, version = patience.until_there(lambda: _read(client, key))
    if _holds(value, wanted, absent):
        return value

    def next_change() -> "Change | None":
        remaining_s = None if end is None else end - time.monotonic()
        if remaining_s is not None and remaining_s <= 0:
            return None
        return watch.wait(remaining_s)

    # The watch begins at the version that was read, so no change in between is missed.
    with patience.until_there(lambda: client.watch(key, version)) as watch:
        patience = Patience(context, None)  # next_change knows when the time is over
        while (change := patience.until_there(next_change)) is not None:
            if not change.resync and key not in change.writes:
                continue  # a longer key with this prefix
            value = change.writes.get(key)
            if _holds(value, wanted, absent):
                return value
    raise CommandFailed(f"the condition for {key} did not hold within {limit_s:g} s", exits.SERVER_ERROR)


def _read(client: "Client", key: str) -> tuple[bytes | None, int]:
    with client.snapshot() as snapshot:
        return snapshot.get(key), snapshot.version


def _holds(value: bytes | None, wanted: bytes | None, absent: bool) -> bool:
    is_present = value is not None and (wanted is None or value == wanted)
    return is_present is not absent
