"""Keys and prefixes on the command line: each command reads them as UTF-8, whatever the locale."""

from collections.abc import Iterator

import pytest

from kv.cli.parser import build_parser
from kv.cli.registry import COMMANDS
from tests.harness.kv_command import Kv

# Python has no other locale on every machine in which bytes above 127 are no text.
NO_UTF8 = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
KEY_COMPLETERS = ("keys", "prefixes", "pairs", "user-then-key", "locks")
KEY = "für/😁"
# For each operand and option that takes a key or a prefix, a line that succeeds; and what makes it so.
LINES: dict[tuple[str, str], list[str]] = {
    ("set", "operands"): [f"{KEY}=ü"],
    ("set", "key"): ["--key", KEY, "--value", "ü"],
    ("get", "operands"): [KEY],
    ("del", "operands"): [KEY],
    ("del", "prefix"): ["--yes", "--prefix", "für"],
    ("ls", "operands"): ["für"],
    ("incr", "operands"): ["fürn"],
    ("ttl", "operands"): [KEY],
    ("touch", "operands"): [KEY, "--ttl", "1h"],
    ("watch", "operands"): ["für", "--since", "0", "--count", "1"],
    ("wait", "operands"): [f"{KEY}=ü"],
    ("wait", "key"): ["--key", KEY, "--value", "ü"],
    ("lock", "operands"): ["für", "--", "true"],
    ("history", "operands"): [KEY, "--json"],
    ("rollback", "operands"): ["--dry-run", "--to", "1", KEY],
    ("export", "operands"): ["für"],
    ("import", "prefix"): ["--prefix", KEY],
    ("access", "user"): ["certificate:jürgen", KEY],
    ("access", "key"): ["0", KEY],
}
LINE_OF_IMPORT = b'{"key": "f\xc3\xbcr/\xf0\x9f\x98\x81", "value": "\xc3\xbc"}\n'


def key_arguments() -> Iterator[tuple[str, str]]:
    """Every operand and option of the parsers that takes a key or a prefix, by what TAB offers for it."""
    for command in COMMANDS:
        for action in build_parser(command, describe=True)._actions:
            if getattr(action, "completes", None) in KEY_COMPLETERS:
                yield command.name, action.dest


def test_every_key_and_prefix_of_the_parsers_is_tried_here() -> None:
    assert set(key_arguments()) == set(LINES)


@pytest.mark.parametrize(("command", "argument"), LINES, ids=lambda value: value)
def test_a_key_means_the_same_in_every_locale(shared_kv: Kv, command: str, argument: str) -> None:
    def run(**locale: str) -> tuple[int, bytes, bytes]:
        shared_kv.ok("set", f"{KEY}=ü", "fürn=1")
        words = [command, *(word.encode() for word in LINES[command, argument])]
        done = shared_kv(*words, stdin=LINE_OF_IMPORT, **locale)
        return done.returncode, done.stdout, done.stderr

    code, out, error = run(**NO_UTF8)
    assert (code, error) == (0, b"")
    if command not in ("watch", "history", "rollback"):  # which print versions and times
        assert (code, out, error) == run()


@pytest.mark.parametrize(("command", "argument"), LINES, ids=lambda value: value)
def test_bytes_that_are_no_utf8_are_refused_in_every_locale(shared_kv: Kv, command: str, argument: str) -> None:
    words = [word.encode().replace("ü".encode(), b"\xfc") for word in LINES[command, argument]]
    if command == "import":
        words = [b"--prefix", b"f\xfcr"]
    for locale in ({}, NO_UTF8):
        error = shared_kv.fails(2, command, *words, stdin=LINE_OF_IMPORT, **locale)
        assert "must be UTF-8" in error
        assert "\\xfc" in error


# ---------------------------------------------------------------------- NUL bytes


@pytest.fixture
def with_nul(kv: Kv) -> Kv:
    """A key whose first part is a key that somebody else has, below ``t/``, with a NUL byte before it."""
    kv.ok("import", stdin=b"".join(b'{"key": "%s", "value": "1"}\n' % key for key in (b"a", b"t/x", b"t/x\\u0000a")))
    return kv


def test_ls_with_nul_bytes_names_a_key_that_has_one_instead_of_printing_it(with_nul: Kv) -> None:
    done = with_nul("ls", "-0", "t/")
    assert (done.returncode, done.stdout) == (1, b"t/x\0")
    assert done.stderr == b"kv: error: the key t/x\\x00a has a NUL byte in it and is not printed; use --json\n"
    assert with_nul.ok("ls", "-0", "a") == "a\0"
    assert '"t/x\\u0000a"' in with_nul.ok("ls", "--json", "t/")
