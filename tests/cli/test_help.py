"""Help, version, and the manual page: generated from the same parsers."""

import pathlib
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from kv.cli.manpage import page
from kv.cli.parser import build_parser
from kv.cli.registry import COMMANDS
from kvd.protocol import exits
from tests.harness.processes import ROOT

if TYPE_CHECKING:
    from tests.harness.kv_command import Kv

NAMES = [command.name for command in COMMANDS]


def test_kv_alone_prints_a_short_help(alone: "Kv") -> None:
    text = alone.ok()
    assert len(text.splitlines()) < 55
    assert all(re.search(rf"^  {name}\b", text, re.MULTILINE) for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_help_begins_with_examples(alone: "Kv", name: str) -> None:
    text = alone.ok("help", name)
    assert text.index(f"  kv {name}") < text.index("usage:") < text.index("--socket ADDRESS")
    assert alone.ok(name, "-h") == text == alone.ok(name, "--help")


def test_help_names_every_exit_code(alone: "Kv") -> None:
    text = alone.ok("help", "exit-codes")
    assert [int(number) for number in re.findall(r"^ +(\d+)  ", text, re.MULTILINE)] == list(exits.MEANINGS)


def test_help_on_an_unknown_command_is_wrong_usage(alone: "Kv") -> None:
    assert "no such command: nothing" in alone.fails(2, "help", "nothing")


def test_version(alone: "Kv") -> None:
    assert re.fullmatch(r"kv \d+\.\d+\.\d+\n", alone.ok("version"))
    assert alone.ok("--version") == alone.ok("version") == alone.ok("get", "--version")


def test_the_manual_page_has_every_command_and_option() -> None:
    text = page().replace("\\-", "-")
    for command in COMMANDS:
        section = re.split(rf"\.SS kv {command.name}[,\n]", text)[1].split(".SS")[0]
        for action in build_parser(command, describe=True)._actions:
            for option in action.option_strings:
                assert option in section or option in text.split(".SH COMMANDS")[0]
            assert (action.help or "").split(";")[0][:20].replace("'", "\\(aq") in text


def test_the_manual_page_in_docs_is_the_one_that_is_generated() -> None:
    assert (ROOT / "docs/kv.1").read_text() == page(), "run: python -m kv.cli.manpage > docs/kv.1"


@pytest.mark.skipif(not (shutil.which("man") and shutil.which("groff")), reason="no man here")
def test_man_shows_the_page_without_warnings(tmp_path: pathlib.Path) -> None:
    (tmp_path / "kv.1").write_text(page())
    result = subprocess.run(  # noqa: S603 (the command under test)
        ["man", "--warnings", "-E", "UTF-8", "-l", str(tmp_path / "kv.1")], capture_output=True, check=True,  # noqa: S607 (wherever man is)
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "MANWIDTH": "80"},
    )  # fmt: skip
    assert result.stderr == b""
    assert b"kv del [OPTION]... --prefix PREFIX" in result.stdout
