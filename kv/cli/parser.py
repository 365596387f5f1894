"""The grammar of the command line: ``kv [OPTION]... COMMAND [OPTION|OPERAND]... [-- OPERAND...]``.

Only the parser of the command on the line is built, because each further one would cost as much as the request to the
daemon. Common options may stand before and after the command. argparse reads the options. The other words are operands,
so they may stand between options. Each word after ``--`` is an operand, or a word of a command to run (``kv lock``,
``kv watch``).
"""

import argparse
import os

from kv.cli.failures import UsageError
from kv.cli.registry import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import NoReturn, TypeVar

    Options = TypeVar("Options", bound="CommonOptions")

_WIDTH = 100
_COMMON_WITH_VALUE = ("-s", "--socket", "--token-file", "--timeout")
_COMMON_FLAGS = ("-q", "--quiet", "-v", "--verbose", "-h", "--help", "--version")
DEFAULT_TIMEOUT_S = 5.0


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Help of a fixed width: to ask the terminal for its width would import modules at every add_argument."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=_WIDTH)


class CommonOptions:
    """The options that every command has, with their defaults. Each command adds its own in a subclass.

    argparse sets what the command line has and leaves the rest (``argument_default=SUPPRESS``). So an option may stand
    before or after the command, and its default stands once, in the class, where mypy sees its type.
    """

    socket: str | None = None
    token_file: str | None = None
    timeout: float | None = None
    quiet: bool = False
    verbose: bool = False
    help: bool = False
    version: bool = False
    # Set by ``parse``: the operands, the words of a command to run, the values of each verbatim option.
    operands: list[str]
    command: list[str]
    verbatim: dict[str, list[str]]

    def timeout_s(self, default_s: float = DEFAULT_TIMEOUT_S, *, flag: bool = True) -> float | None:
        """Return how long to wait for the daemon; None: for ever. ``flag`` false ignores --timeout.

        The option goes before KVD_TIMEOUT, and that before the default.
        """
        timeout_s = self.timeout if flag else None
        if timeout_s is None and os.environ.get("KVD_TIMEOUT"):
            timeout_s = _seconds(os.environ["KVD_TIMEOUT"], "KVD_TIMEOUT")
        if timeout_s is None:
            timeout_s = default_s
        return timeout_s or None


class Parser(argparse.ArgumentParser):
    """The options of one command. With ``describe`` argparse knows the operands, too, for help and completion."""

    def __init__(self, prog: str, *, usage: str | None = None, describe: bool = False, color: bool = False) -> None:
        super().__init__(
            prog, usage=usage, add_help=False, allow_abbrev=False, formatter_class=Formatter,
            argument_default=argparse.SUPPRESS,
        )  # fmt: skip
        self.color = color  # argparse has it from Python 3.14 on, and passes it to the parsers of a parser's commands
        self.describe = describe
        self.takes_operands = False
        # Whether the words after "--" are a command to run, and whether -5 may be an operand.
        self.takes_command = False
        self.takes_numbers = False
        self.verbatim: tuple[str, ...] = ()

    def operands(self, metavar: str, help: str, completes: str = "nothing") -> None:  # noqa: A002 - argparse's word
        """Declare that the command takes operands; ``completes`` names what TAB offers for them."""
        self.takes_operands = True
        if self.describe:
            set_completer(self.add_argument("operands", nargs="*", metavar=metavar, help=help), completes)

    def error(self, message: str) -> "NoReturn":
        """Raise UsageError with one line, as argparse requires of this method."""
        raise UsageError(f"{message}; see '{self.prog} --help'")


def set_completer(action: argparse.Action, kind: str) -> argparse.Action:
    """Have TAB complete ``action`` by ``kind``, one of the names in completers.py. Returns ``action``."""
    action.completes = kind  # type: ignore[attr-defined]
    return action


def build_parser(command: Command, *, describe: bool = False) -> Parser:
    """Return the parser of one command."""
    parser = Parser(f"kv {command.name}", usage=command.load().USAGE, describe=describe)
    add_arguments(parser, command)
    return parser


def add_arguments(parser: Parser, command: Command) -> None:
    """Add the options and operands of ``command`` to ``parser``, and the common options."""
    command.load().arguments(parser)
    add_common_options(parser)


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that every command has."""
    group = parser.add_argument_group("common options")
    set_completer(
        group.add_argument(
            "-s", "--socket", metavar="ADDRESS", help="the daemon: a socket's path, tls://HOST:PORT or tcp://…"
        ),
        "files",
    )
    set_completer(
        group.add_argument("--token-file", metavar="FILE", help="file with the token, which TCP needs"), "files"
    )
    group.add_argument(
        "--timeout", metavar="SECONDS", type=_timeout, help="how long to wait for the daemon (default: 5; 0: for ever)"
    )
    group.add_argument("-q", "--quiet", action="store_true", help="print nothing; the exit code is the answer")
    group.add_argument("-v", "--verbose", action="store_true", help="tell more, on stderr")
    group.add_argument("-h", "--help", action="store_true", help="show this help")
    group.add_argument("--version", action="store_true", help="print the version")


def split_command(arguments: list[str]) -> tuple[list[str], str | None, list[str]]:
    """Return the options before the command, its name, and the words after it. Raises UsageError."""
    position = 0
    while position < len(arguments):
        word = arguments[position]
        if word == "--" and position + 1 < len(arguments):
            return arguments[:position], arguments[position + 1], arguments[position + 2 :]
        if not word.startswith("-") or word == "-":
            return arguments[:position], word, arguments[position + 1 :]
        position += _common_option_width(word)
    return arguments, None, []


def _common_option_width(word: str) -> int:
    """Return how many words the common option ``word`` takes. Raises UsageError."""
    if word in _COMMON_WITH_VALUE:
        return 2
    if word in _COMMON_FLAGS or word.startswith(("--socket=", "--token-file=", "--timeout=")):
        return 1
    if word.startswith("-s") or (not word.startswith("--") and set(word[1:]) <= set("qvh")):
        return 1
    raise UsageError(f"unknown option before the command: {word}; write it after the command, or see 'kv help'")


def parse(parser: Parser, arguments: list[str], options: "Options") -> "Options":
    """Set what the command line says on ``options``, which has the defaults, and return it. Raises UsageError."""
    arguments, verbatim, literal = _split_arguments(parser, arguments)
    options, rest = parser.parse_known_args(arguments, options)
    options.verbatim = verbatim
    for word in rest:
        if word.startswith("-") and word != "-" and not (parser.takes_numbers and word[1:].isdigit()):
            parser.error(f"unknown option: {word} ({_suggestion(parser, word)})")
    options.operands = rest if parser.takes_command else rest + literal
    options.command = literal if parser.takes_command else []
    if options.operands and not parser.takes_operands and not options.help:
        parser.error(f"this command takes no operands: {options.operands[0]}")
    return options


def _suggestion(parser: Parser, word: str) -> str:
    """Return what the person may have meant by an unknown option: another option, or an operand."""
    import difflib

    known = [name for name in parser._option_string_actions if name.startswith("--")]
    near = difflib.get_close_matches(word.partition("=")[0], known, n=1)
    return f"did you mean {near[0]}?" if near else "write '--' before an operand that begins with '-'"


def _split_arguments(parser: Parser, arguments: list[str]) -> tuple[list[str], dict[str, list[str]], list[str]]:
    """Return the words for argparse, the values of the verbatim options, and the words after ``--``.

    A verbatim option takes the next word even if that looks like an option.
    """
    for_argparse: list[str] = []
    verbatim: dict[str, list[str]] = {option: [] for option in parser.verbatim}
    words = iter(arguments)
    for word in words:
        option, equals, value = word.partition("=")
        if word == "--":
            break
        if option in verbatim:
            verbatim[option].append(value if equals else _next(words, parser, option))
        else:
            for_argparse.append(word)
    return for_argparse, verbatim, list(words)


def _next(words: "Iterator[str]", parser: Parser, option: str) -> str:
    value = next(words, None)
    if value is None:
        parser.error(f"option {option} needs a value")
    return value


def _timeout(text: str) -> float:
    return _seconds(text, "--timeout")


def _seconds(text: str, source: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 1e6:  # also refuses nan
        raise UsageError(f"{source} is a number of seconds from 0 to 1000000, not {text!r}")
    return seconds
