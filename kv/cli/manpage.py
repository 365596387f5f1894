"""The manual page kv(1), generated from the parsers: ``python -m kv.cli.manpage > docs/kv.1``."""

import argparse
import sys

from kv.cli.parser import Parser, add_common_options, build_parser
from kv.cli.points import HELP as TIMES
from kv.cli.registry import COMMANDS, Command
from kvd.protocol import exits

_INTRODUCTION = """\
kv talks to the kvd daemon, which keeps keys and values for the programs and people of one Linux host. A key is any
text of up to 4 KiB, a value any bytes of up to 8 MiB. Several keys are set or deleted all together or not at all."""

_OUTPUT = """\
What is asked for is printed on standard output, one record a line, and everything else on standard error. In a line,
characters that do not print and bytes that are not UTF-8 are shown as escapes such as \\n, \\x1b and \\u202e; a
backslash is shown as it is. For programs there are --raw, --json and -0, where a command has them. The text for people
may change; exit codes and JSON are only added to."""

_ENVIRONMENT = {
    "KVD_SOCKET": "the daemon's address, if --socket is not given",
    "KVD_TIMEOUT": "how many seconds to wait for the daemon, if --timeout is not given",
    "KVD_TOKEN_FILE": "file with the token, if --token-file is not given",
    "KVD_CA_FILE": "for tls://: the certificates of whom to believe, else the system's (PEM)",
    "KVD_CERTIFICATE_FILE": "for tls://: our own certificate, where the daemon asks for one (PEM)",
    "KVD_KEY_FILE": "its key, if it is not in the same file",
    "KVD_DEBUG": "1: show where in kv an error came from",
}

_FILES = {
    "$XDG_RUNTIME_DIR/kvd/kvd.sock": "the socket of a user's own daemon, looked for first",
    "/run/kvd/kvd.sock": "the socket of the system's daemon",
}


def page() -> str:
    """Return the page as roff."""
    parts = [
        '.TH KV 1 "" "kvd" "User Commands"',
        _section("NAME") + r"kv \- keys and values, kept by a daemon on this host",
        _section("SYNOPSIS") + ".B kv\n[OPTION]... COMMAND [OPTION|OPERAND]... [\\-\\- OPERAND...]",
        _section("DESCRIPTION") + _text(_INTRODUCTION),
        _section("OPTIONS") + "These may stand before or behind the command.\n" + _common_options(),
        _section("COMMANDS") + "\n".join(_command(command) for command in COMMANDS),
        _section("VERSIONS AND TIMES") + ".nf\n" + _text(TIMES) + "\n.fi",
        _section("OUTPUT") + _text(_OUTPUT),
        _section("EXIT STATUS") + "\n".join(_item(str(code), text) for code, text in exits.MEANINGS.items()),
        _section("ENVIRONMENT") + "\n".join(_item(*entry) for entry in _ENVIRONMENT.items()),
        _section("FILES") + "\n".join(_item(*entry) for entry in _FILES.items()),
    ]
    return "\n".join(parts) + "\n"


def _command(command: Command) -> str:
    module = command.load()
    names = ", ".join(f"kv {name}" for name in (command.name, *command.aliases))
    usage = (line.strip() for line in module.USAGE.splitlines())
    parts = [
        f".SS {_escape(names)}",
        ".nf\n" + "\n".join(f".B {_escape(line)}" for line in usage) + "\n.fi",
        ".PP\n" + _text(command.summary),
        *_own_options(command),
        ".PP\nExamples:",
        ".PP\n.nf\n.RS 4\n" + _text(module.EXAMPLES.strip()) + "\n.RE\n.fi",
    ]
    if module.DETAILS.strip():
        parts.append(".PP\n" + _text(module.DETAILS.strip()))
    return "\n".join(parts)


def _own_options(command: Command) -> list[str]:
    """Return the operands and options of the command, without the common options."""
    common = {option for action in _common_actions() for option in action.option_strings}
    actions = (
        action for action in build_parser(command, describe=True)._actions if not common & set(action.option_strings)
    )
    return [_action(action) for action in actions]


def _common_options() -> str:
    return "\n".join(_action(action) for action in _common_actions())


def _common_actions() -> list[argparse.Action]:
    parser = Parser("kv")
    add_common_options(parser)
    return parser._actions


def _action(action: argparse.Action) -> str:
    value = f" {action.metavar}" if action.metavar else ""
    return _item(", ".join(action.option_strings) + value, action.help or "")


def _section(title: str) -> str:
    return f".SH {title}\n"


def _item(term: str, text: str) -> str:
    return f".TP\n.B {_escape(term.strip())}\n{_text(text)}"


def _text(text: str) -> str:
    # To roff, a line that begins with a dot or an apostrophe is a request.
    lines = (_escape(line) for line in text.splitlines())
    return "\n".join(f"\\&{line}" if line.startswith((".", "'")) else line for line in lines)


def _escape(text: str) -> str:
    return (
        text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("^", "\\(ha").replace("~", "\\(ti")
    )


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    sys.stdout.write(page())
