"""``kv watch``: print changes as they happen, or run a command for each."""

import os

from kv.cli.commands.history import event_text
from kv.cli.context import Context, checked_prefix, history_point
from kv.cli.failures import OutputFailed, UsageError
from kv.cli.parser import CommonOptions, Parser, set_completer
from kv.cli.patience import Patience
from kvd.protocol import Position, exits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kv.results import Change

USAGE = "kv watch [OPTION]... [PREFIX] [-- COMMAND [ARGUMENT]...]"
EXAMPLES = """
kv watch                            12 set cake: 🎂 and 13 deleted horns, as it happens
kv watch --since 10m user/          first what happened in the last ten minutes
kv watch --json user/               one JSON object a line
kv watch --count 1 deploy/          until the first change
kv watch user/ -- sh -c 'echo "$KVD_KEY"; wc -c'
                                    a command for each change, the value on its standard input
"""
DETAILS = """
A line for each key that a commit has changed: version, 'set' or 'deleted', key and value. Nothing is lost, doubled or
out of order, also when the daemon is restarted. Where the history does not reach back far enough, a line 'VERSION
resync' tells that whatever was known before may be wrong, and every key that there is follows as 'set'. Without a
daemon it waits for one: without --timeout for ever, with it for so long each time.

To go on later, keep the last "position" of --json, or KVD_POSITION, for --since: it names the store, so that nothing
is skipped when the daemon has another one.

A COMMAND is run for each change, one after the other, with KVD_KEY, KVD_VERSION, KVD_POSITION and KVD_EVENT (set,
deleted, or resync, which has no key) in its environment, the value on its standard input, and in KVD_VALUE if it is
text of up to 64 KiB. If it cannot be run, watching ends, or does not begin; how it ends does not matter. Watching
ends, too, when the reader of standard output has gone. Ctrl-C ends with exit code 130.
"""
_MAX_IN_ENVIRONMENT_BYTES = 64 * 1024
_CHECK_INTERVAL_S = 1.0  # between checks whether the output still has a reader


class Options(CommonOptions):
    """The options of ``kv watch``."""

    since: str | None = None
    count: int | None = None
    json: bool = False


def arguments(parser: Parser) -> None:
    """The options of ``kv watch``."""
    parser.takes_command = True
    parser.operands("PREFIX", "only keys that begin with it", "prefixes")
    set_completer(parser.add_argument("--since", metavar="VERSION|TIME", help="also the changes after that"), "points")
    parser.add_argument("--count", metavar="N", type=_count, help="end after so many changed keys")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def _count(text: str) -> int:
    from kv.cli.numbers import whole_number

    return whole_number("--count", 1)(text)


def run(context: Context, options: Options) -> int:
    """Handle each change until ctrl-c, or until there were --count of them."""
    if len(options.operands) > 1:
        raise UsageError(f"one prefix at a time: {options.operands[1]!r} is too many; write a command after '--'")
    if options.command and options.json:
        raise UsageError("--json is for what is printed; a command gets the change in its environment")
    prefix = checked_prefix(*options.operands)
    point = history_point(options.since, "--since")
    handler = ChangeHandler(context, options)
    if options.command:
        from kv.cli.processes import check_command

        check_command(options.command[0])
    patience = Patience(context, options.timeout_s(0))
    with context.connect(0) as client:
        since = None if point is None else patience.until_there(lambda: point.version(client))
        with patience.until_there(lambda: client.watch(prefix, since)) as watch:
            while not handler.is_done:
                change = watch.wait(_CHECK_INTERVAL_S)
                if change is not None:
                    handler.handle(change)
                else:
                    _check_reader()
    return exits.OK


def _check_reader() -> None:
    """Raise OutputFailed if the output has no reader any more. Without a change, no write would notice that.

    A pipe has an error then, a socket is hung up. A peer that only sends no more (POLLRDHUP) may still read.
    """
    import select

    poll = select.poll()
    poll.register(1, 0)
    if any(events & (select.POLLERR | select.POLLHUP | select.POLLNVAL) for _, events in poll.poll(0)):
        raise OutputFailed(BrokenPipeError("the output has no reader"))


class ChangeHandler:
    """Prints changes, or runs a command for each, key by key, until there were as many as --count says."""

    def __init__(self, context: Context, options: Options) -> None:
        self._context = context
        self._options = options
        self._left = options.count

    @property
    def is_done(self) -> bool:
        """Whether --count keys have changed."""
        return self._left == 0

    def handle(self, change: "Change") -> None:
        """Print a change, or run the command for each of its keys. Raises CommandFailed, OutputFailed."""
        handle_key = self._run if self._options.command else self._print
        if change.resync:
            handle_key(change, "resync", None, None)
        for key in sorted(change.writes):
            if self.is_done:
                break
            value = change.writes[key]
            handle_key(change, "deleted" if value is None else "set", key, value)
            if self._left is not None:
                self._left -= 1
        self._context.output.flush()

    def _print(self, change: "Change", event: str, key: str | None, value: bytes | None) -> None:
        if not self._options.json:
            self._context.print(f"{change.version} {event if key is None else event_text(key, value)}")
            return
        from kv.cli.authors import commit_json
        from kv.cli.jsontext import value_json

        fields = {**commit_json(change.version, change.time, change.author), "event": event}
        if key is not None:
            fields |= {"key": key, "value": None if value is None else value_json(value)}
        self._context.print_json(fields)

    def _run(self, change: "Change", event: str, key: str | None, value: bytes | None) -> None:
        from kv.cli.processes import environment, exit_code_of, memory_file, start

        variables = environment(
            self._options, KVD_KEY=_in_environment(None if key is None else key.encode()),
            KVD_VALUE=_in_environment(value), KVD_VERSION=str(change.version), KVD_EVENT=event,
            KVD_POSITION=change.version.text if isinstance(change.version, Position) else None,
        )  # fmt: skip
        stdin = memory_file(value or b"")
        try:
            status = exit_code_of(start(self._options.command, variables, stdin))
        finally:
            os.close(stdin)
        self._context.note(f"{change.version} {event}: the command ended with {status}")


def _in_environment(data: bytes | None) -> bytes | None:
    """Return ``data`` if an environment variable can hold it: short enough, and text without a zero byte."""
    if data is None or b"\0" in data or len(data) > _MAX_IN_ENVIRONMENT_BYTES:
        return None
    try:
        data.decode()
    except UnicodeDecodeError:
        return None
    return data
