"""The entry point: find the command, run it, and turn every failure into one line and an exit code."""

import gc
import os
import sys

from kv.cli.failures import CommandFailed, OutputFailed
from kv.cli.output import Output, warn
from kvd.protocol import exits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kv.cli.parser import CommonOptions

# A garbage collection would cost a short command 1.5 of its 20 ms; these commands live longer.
_COLLECTS_GARBAGE = ("serve", "watch", "wait", "lock", "backup", "restore", "check", "export", "import", "bench")


def main() -> int:
    """Run the command of sys.argv. Does not return, unless the daemon itself ran."""
    if "_ARGCOMPLETE" in os.environ:
        from kv.cli.complete import complete

        return complete()
    gc.disable()
    status = run(sys.argv[1:])
    if "kvd.service" not in sys.modules:
        # All output is flushed; to finalize the interpreter would cost a tenth of the command's time.
        os._exit(status)
    return status


def run(arguments: list[str]) -> int:
    """Run one command line and return the exit code. Raises nothing."""
    output = Output()
    try:
        status = _dispatch(arguments, output)
        output.flush()
        return status
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    except Exception as error:
        return _report(error, output)


def _dispatch(arguments: list[str], output: Output) -> int:
    from kv.cli.parser import build_parser, parse, split_command
    from kv.cli.registry import find_or_suggest

    before, name, after = split_command(arguments)
    if name is None:
        return _without_command(before, output)
    command = find_or_suggest(name)
    if command.name in _COLLECTS_GARBAGE:
        gc.enable()
    if command.name != "serve":  # the daemon looks after its own descriptors
        _hold_standard_descriptors()
    module = command.load()
    options = parse(build_parser(command), before + after, module.Options())
    if options.help or options.version:
        return _explain(command.name, options, output)
    from kv.cli.context import Context

    return int(module.run(Context(options, output), options))


def _without_command(before: list[str], output: Output) -> int:
    from kv.cli.parser import CommonOptions, Parser, add_common_options, parse

    parser = Parser("kv")
    add_common_options(parser)
    options = parse(parser, before, CommonOptions())
    return _explain("", options, output)


def _explain(topic: str, options: "CommonOptions", output: Output) -> int:
    from kv.cli.commands import version
    from kv.cli.helptext import explain

    output.line(version.text() if options.version else explain(topic))
    return exits.OK


def _hold_standard_descriptors() -> None:
    """Fill closed descriptors 0 to 2, so that no socket gets their number and no output is written to it.

    Each is opened in the wrong direction: using it stays the error that it would have been.
    """
    for descriptor, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, flags)


def _report(error: Exception, output: Output) -> int:
    """Print on stderr what went wrong, after the output so far, and return the exit code."""
    try:
        output.flush()
    except OutputFailed:
        pass
    if os.environ.get("KVD_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    status, text = _explained(error)
    if text and not (output.quiet and status != exits.USAGE):
        warn(f"error: {text}")
    return status


def _explained(error: Exception) -> tuple[int, str]:
    """Return the exit code of an error, and what to tell about it."""
    if isinstance(error, OutputFailed):
        return _output_failed(error)
    if isinstance(error, CommandFailed):
        return error.status, error.message
    return _daemon_failed(error)


def _output_failed(error: OutputFailed) -> tuple[int, str]:
    if isinstance(error.cause, BrokenPipeError):
        return exits.PIPE_CLOSED, ""
    return exits.IO_ERROR, f"cannot write the output: {error.cause.strerror}"


def _daemon_failed(error: Exception) -> tuple[int, str]:
    from kv.errors import Conflict, KvdError

    if not isinstance(error, KvdError):
        text = f"a fault in kv: {type(error).__name__}: {error}; please report it (KVD_DEBUG=1 shows more)"
        return exits.INTERNAL, text
    if isinstance(error, Conflict):
        from kv.cli.authors import conflict_text

        return exits.CONFLICT, conflict_text(error)
    unsure = ""
    if error.maybe_committed:
        is_said = "may have been made" in error.message
        unsure = ("" if is_said else "; the change may have been made") + "; read the keys before you try again"
    return exits.exit_code_for(error.code), f"{error.message}{unsure}"
