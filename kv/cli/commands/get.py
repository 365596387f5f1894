"""``kv get``: print values, in the order of the operands."""

from kv.cli.context import Context, checked_keys, history_point
from kv.cli.escape import show
from kv.cli.failures import UsageError
from kv.cli.parser import CommonOptions, Parser, set_completer
from kvd.protocol import exits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kv.blocking.client import Client

USAGE = "kv get [OPTION]... KEY..."
EXAMPLES = """
kv get cake horns                   cake: 🎂 and horns: 😈, a line each
kv get --raw photo > photo.jpg      exactly the bytes of one value
kv get --json cake photo            one JSON object
kv get -q cake && echo there        only the exit code
kv get --at 5m cake                 what it was five minutes ago
kv get --at 1234 cake horns         what they were at version 1234
kv get --touch 30m session          the value, which lives for 30 minutes from now on
"""
DETAILS = """
A key that is missing is named on standard error, the others are printed, and the exit code is 1. What does not print
is escaped (\\n, \\x1b, \\u202e), so that one record is one line; --raw, --json and -0 are for programs. In JSON a value
that is no text is {"base64": "..."}. 'kv help times' explains what --at takes.

--touch prolongs and reads in one step, for what lives for as long as it is used. It is a commit, as 'kv touch' is, and
with access rules it takes the right to write, too. A key that is missing stays missing.
"""


class ValueForms(CommonOptions):
    """How values are printed; the options of ``add_forms``."""

    raw: bool = False
    json: bool = False
    null: bool = False


class Options(ValueForms):
    """The options of ``kv get``."""

    at: str | None = None
    touch: str | None = None


def arguments(parser: Parser) -> None:
    """The options of ``kv get``."""
    parser.operands("KEY", "what to read", "keys")
    set_completer(parser.add_argument("--at", metavar="VERSION|TIME", help="read what was there then"), "points")
    set_completer(
        parser.add_argument("--touch", metavar="DURATION", help="have the keys live so long from now on; or none"),
        "durations",
    )
    add_forms(parser)


def add_forms(parser: Parser) -> None:
    """Add the options for how values are printed."""
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--raw", action="store_true", help="the exact bytes of one value, nothing added")
    form.add_argument("--json", action="store_true", help="one JSON object of keys and values")
    form.add_argument("-0", "--null", action="store_true", help="end each record with a NUL byte and escape nothing")


def run(context: Context, options: Options) -> int:
    """Print the values as ``key: value``."""
    keys = checked_keys(options.operands, "get")
    if options.raw and len(keys) != 1:
        raise UsageError(f"--raw prints exactly one value, {len(keys)} keys were given; use -0 or --json for several")
    point = history_point(options.at, "--at")
    if options.touch is not None and point is not None:
        raise UsageError("--touch prolongs what is there now, and --at reads what was there then: one of them")
    ttl_s = _ttl_s(options.touch)
    with context.connect() as client:
        if options.touch is not None:
            values = client.get_and_touch(*dict.fromkeys(keys), ttl=ttl_s)
            items = [(key, values[key]) for key in keys]
        else:
            items = _read(client, keys, None if point is None else point.version(client))
    print_values(context, options, {key: value for key, value in items if value is not None}, keys)
    missing = list(dict.fromkeys(key for key, value in items if value is None))
    context.warn_missing(missing)
    return exits.NOT_FOUND if missing else exits.OK


def _ttl_s(text: str | None) -> float | None:
    if text is None or text == "none":
        return None
    from kv.cli.durations import duration_s

    return duration_s(text, "--touch")


def _read(client: "Client", keys: list[str], at: int | None) -> list[tuple[str, bytes | None]]:
    if len(keys) == 1 and at is None:
        return [(keys[0], client.get(keys[0]))]
    values = client.get_many(keys, at=at)
    return [(key, values[key]) for key in keys]


def print_values(context: Context, forms: ValueForms, present: dict[str, bytes], keys: list[str]) -> None:
    """Print the values of those of ``keys`` that are ``present``, as ``forms`` say."""
    if forms.json:
        from kv.cli.jsontext import value_json

        context.print_json({key: value_json(value) for key, value in present.items()})
        return
    for key in keys:
        if key in present:
            _print_record(context, forms, key, present[key])


def _print_record(context: Context, forms: ValueForms, key: str, value: bytes) -> None:
    if forms.raw:
        context.output.write(value)
    elif forms.null:
        context.output.write(key.encode() + b": " + value + b"\0")
    else:
        context.print(f"{show(key)}: {show(value)}")
