"""``kv del``: delete all of the keys or none; or, after a confirmation, every key with a prefix."""

import os

from kv.cli.context import Context, checked_key, checked_keys
from kv.cli.escape import show
from kv.cli.failures import UsageError
from kv.cli.numbers import plural
from kv.cli.output import read_some, write_all
from kv.cli.parser import Parser, set_completer
from kv.cli.writing import SyncOption, add_sync
from kvd.protocol import exits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kv.blocking.client import Client

USAGE = "kv del [OPTION]... KEY...\n       kv del [OPTION]... --prefix PREFIX"
EXAMPLES = """
kv del horns                        one key
kv del --ignore-missing a b         those that exist
kv del -n a b                       would it work?
kv del --prefix session/            every key that begins so; asks first
kv del --prefix session/ --yes      the same in a script
"""
DETAILS = """
If one of the keys is missing it is named, nothing is deleted, and the exit code is 1. With --prefix the keys found are
deleted in steps of up to 10,000, each step all or none; keys set meanwhile may stay.
"""
_STEP_KEYS = 10_000


class Options(SyncOption):
    """The options of ``kv del``."""

    prefix: str | None = None
    yes: bool = False
    ignore_missing: bool = False
    dry_run: bool = False


def arguments(parser: Parser) -> None:
    """The options of ``kv del``."""
    parser.operands("KEY", "what to delete", "keys")
    set_completer(
        parser.add_argument("--prefix", metavar="PREFIX", help="delete every key that begins with PREFIX"), "prefixes"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask before deleting a prefix")
    parser.add_argument("--ignore-missing", action="store_true", help="a missing key is no error")
    add_sync(parser)
    parser.add_argument("-n", "--dry-run", action="store_true", help="show what would be deleted; delete nothing")


def run(context: Context, options: Options) -> int:
    """Delete, and print ``Keys deleted``."""
    if options.prefix is not None:
        return _delete_prefix(context, options, options.prefix)
    keys = list(dict.fromkeys(checked_keys(options.operands, "del")))
    if options.dry_run:
        return _rehearse(context, options, keys)
    from kv.errors import NotFound

    try:
        with context.connect() as client:
            count = client.delete(*keys, missing_ok=options.ignore_missing, sync=options.sync)
    except NotFound as error:
        context.warn_missing(error.keys)
        return exits.NOT_FOUND
    context.print("Keys deleted")
    context.note(plural(count, "key"))
    return exits.OK


def _rehearse(context: Context, options: Options, keys: list[str]) -> int:
    with context.connect() as client:
        values = client.get_many(keys)
    missing = [key for key in keys if values[key] is None]
    if missing and not options.ignore_missing:
        context.warn_missing(missing)
        return exits.NOT_FOUND
    for key in keys:
        if values[key] is not None:
            context.print(f"would delete {show(key)}")
    return exits.OK


def _delete_prefix(context: Context, options: Options, argument: str) -> int:
    if not argument:
        raise UsageError("--prefix cannot be empty: that would be every key")
    if options.operands:
        raise UsageError("give either keys or --prefix, not both")
    prefix = checked_key(argument)
    with context.connect() as client:
        keys = [item.key for item in client.scan(prefix, keys_only=True)]
        if not keys:
            return _no_key_begins_with(context, options, prefix)
        if options.dry_run:
            for key in keys:
                context.print(f"would delete {show(key)}")
            return exits.OK
        if not (options.yes or _confirmed(prefix, len(keys))):
            context.warn("nothing was deleted")
            return exits.NOT_FOUND
        _delete_steps(client, keys, options.sync)
    context.print("Keys deleted")
    context.note(plural(len(keys), "key"))
    return exits.OK


def _no_key_begins_with(context: Context, options: Options, prefix: str) -> int:
    if options.ignore_missing:
        return exits.OK
    context.warn(f"error: no key begins with: {prefix}")
    return exits.NOT_FOUND


def _delete_steps(client: "Client", keys: list[str], sync: bool | None) -> None:
    for start in range(0, len(keys), _STEP_KEYS):
        client.delete(*keys[start : start + _STEP_KEYS], missing_ok=True, sync=sync)


def _confirmed(prefix: str, count: int) -> bool:
    """Ask whether to delete. Raises UsageError if there is no terminal."""
    if not (os.isatty(0) and os.isatty(2)):
        raise UsageError(f"{count} keys begin with {prefix!r}; add --yes to delete them without a question")
    write_all(2, f"Delete the {count} keys that begin with {show(prefix)}? [y/N] ".encode())
    return read_some(0, 1024).strip().lower() in (b"y", b"yes")
