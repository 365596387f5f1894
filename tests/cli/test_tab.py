"""Pressing TAB in real shells on a pseudo-terminal, with the keys of a real daemon.

The tests read no screen. They press TAB, then Enter, and look at the arguments with which the shell starts ``kv``; a
stub in its place prints them.
"""

import json
import pathlib
import shutil
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pexpect
import pytest

from tests.harness.processes import ROOT
from tests.harness.waiting import DEADLINE_S

if TYPE_CHECKING:
    from tests.harness.kv_command import Kv

SHELLS = ["bash", "zsh", "fish"]

# Each gets a prefix of two characters of its own, by which it is completed.
ODD = [
    "user:1", "with space", "dou  ble", "it's", 'say "hi"', "end'", 'end"', "dol$HOME", "back\\slash", "star*",
    "semi;colon", "pipe|d", "amp&x", "lt<gt>", "bang!x", "bang!", "paren(s)", "brace{s}", "br[a]", "q?x", "tick`x",
    "grin😁", "caf\u00e9", "\U0001f468\u200d\U0001f469", "nb\u00a0sp", "a=b=c", "at@host", "a@b:c=d", "ca^ret",
    "per%cent", "co,mma", "til~de", "ha#sh", "plus+", "path/to/it", "=~root/y", ":~root", "=~+:~x", "x/~root",
]  # fmt: skip
NAMED = {f"{chr(ord('a') + number // 10)}{number % 10}": name for number, name in enumerate(ODD)}
# What is typed for keys that begin with a special character.
LEADING = {
    "\\#": "#hash", "\\~": "~tilde", "\\!": "!bang", "\\$": "$dollar", "\\'": "'quote", '\\"': '"quote', "\\(": "(p",
    "\\`": "`tick", "@": "@at", "😁": "😁x", "'#": "#hash", '"#': "#hash", "'~": "~tilde", '"~': "~tilde",
    "'$": "$dollar",
}  # fmt: skip
KEYS = [head + name for head, name in NAMED.items()] + sorted(set(LEADING.values()))
# They match the files of an attacker, whose names end the quotes and are commands.
PATTERNS = ["y0*", "y1?*", "y2[!a]*", "y3{x,y}", "y4$(touch PWN)", "y5`touch PWN`"]
UNTYPEABLE = ["z1new\nline", "z2esc\x1b", "z3\u202e"]
MANY = [f"many{number:04}" for number in range(600)]

STUB = """#!/bin/sh
if [ -n "$_ARGCOMPLETE" ]; then exec {python} -m kv; fi
exec {python} -c 'import json, sys; print("ARGV" + json.dumps(sys.argv[1:]) + "END")' "$@"
"""
SCRIPTS = {"bash": "kv.bash", "zsh": "_kv", "fish": "kv.fish"}
START = {"bash": ["--norc", "--noprofile", "-i"], "zsh": ["-f", "-i"], "fish": ["--no-config", "-i"]}
SET_UP = {
    "bash": ["bind 'set completion-query-items 0'", "bind 'set bell-style none'", "set +H", "source '{script}'"],
    "zsh": ["unsetopt banghist beep", "fpath=('{scripts}' $fpath)", "autoload -U compinit", "compinit -u -D"],
    "fish": ["source '{script}'"],
}


class Shell:
    """One session of one shell."""

    def __init__(self, kind: str, folder: pathlib.Path, scripts: pathlib.Path, environment: dict[str, str]) -> None:
        self.folder = folder
        stub = folder / "kv"
        stub.write_text(STUB.format(python=sys.executable))
        stub.chmod(0o755)
        settings = {"PATH": f"{folder}:/usr/bin:/bin", "HOME": str(folder), "TERM": "xterm", "PS1": "$ "}
        self._terminal = pexpect.spawn(
            kind, START[kind], env=environment | settings, cwd=str(folder), encoding="utf-8", timeout=DEADLINE_S,
            dimensions=(50, 400),
        )  # fmt: skip
        self._terminal.delaybeforesend = None
        for line in SET_UP[kind]:
            self._terminal.send(line.format(script=scripts / SCRIPTS[kind], scripts=scripts) + "\r")
        assert self.enter("kv ready") == ["ready"]

    def tab(self, typed: str, then: str = "") -> list[str]:
        """Type, press TAB, type the rest, press Enter; return the arguments of ``kv``."""
        return self.enter(f"{typed}\t{then}")

    def enter(self, typed: str) -> list[str]:
        """Type and press Enter; return the arguments of ``kv``."""
        self._terminal.send(typed + "\r")
        self._terminal.expect("ARGV(.*?)END")
        arguments: list[str] = json.loads(self._terminal.match.group(1))
        return arguments

    def close(self) -> None:
        """End the session."""
        self._terminal.close(force=True)


@pytest.fixture(scope="module")
def filled(shared_kv: "Kv") -> "Kv":
    """A daemon with all these keys."""
    lines = [
        json.dumps({"key": key, "value": "v"}) for key in [*KEYS, *PATTERNS, *UNTYPEABLE, *MANY, "-dash", "w/x", "w/y"]
    ]
    shared_kv.ok("set", "-", stdin="\n".join(lines).encode())
    return shared_kv


@pytest.fixture(scope="module", params=SHELLS)
def shell(request: pytest.FixtureRequest, filled: "Kv", tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A session of each shell."""
    if not shutil.which(request.param):
        pytest.skip(f"no {request.param} here")
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "file one").write_text("")
    (folder / "folder").mkdir()
    (folder / "folder" / "inner").write_text("")
    session = Shell(request.param, folder, ROOT / "completions", filled.environment())
    yield session
    session.close()


@pytest.mark.parametrize("head", NAMED)
def test_a_key_is_completed_bare_and_in_both_quotes(shell: Shell, head: str) -> None:
    key = head + NAMED[head]
    for quote in ("", '"', "'"):
        assert shell.tab(f"kv get {quote}{head}") == ["get", key]


@pytest.mark.parametrize("typed", LEADING)
def test_a_key_that_begins_with_a_special_character_is_completed(shell: Shell, typed: str) -> None:
    assert shell.tab(f"kv get {typed}") == ["get", LEADING[typed]]


@pytest.mark.parametrize("head", [head for head, name in NAMED.items() if "=" not in name])
def test_set_completes_the_key_and_adds_the_equals_sign(shell: Shell, head: str) -> None:
    assert shell.tab(f"kv set {head}", "1") == ["set", f"{head}{NAMED[head]}=1"]


@pytest.mark.parametrize(
    ("typed", "arguments"),
    [
        ("kv g", ["get"]),
        ("kv shut", ["shutdown"]),
        ("kv delete", ["delete"]),
        ("kv completion z", ["completion", "zsh"]),
        ("kv help exi", ["help", "exit-codes"]),
        ("kv get --ra", ["get", "--raw"]),
        ("kv serve --log-level w", ["serve", "--log-level", "warning"]),
        ("kv serve --log-level=w", ["serve", "--log-level=warning"]),
        ("kv serve --config fold", ["serve", "--config", "folder/"]),
        ("kv serve --config=folder/", ["serve", "--config=folder/inner"]),
        ("kv -s folder/", ["-s", "folder/inner"]),
        ("kv -q get a0", ["-q", "get", "a0user:1"]),
        ("kv get --raw a0", ["get", "--raw", "a0user:1"]),
        ("kv get x --raw a0", ["get", "x", "--raw", "a0user:1"]),
        ("kv get a0user:", ["get", "a0user:1"]),
        ("kv get x y a0", ["get", "x", "y", "a0user:1"]),
        ("kv get 'a b' a0", ["get", "a b", "a0user:1"]),
        ("kv del a0", ["del", "a0user:1"]),
        ("kv del --prefix a0", ["del", "--prefix", "a0user:1"]),
        ("kv del -- -d", ["del", "--", "-dash"]),
        ("kv ls a0", ["ls", "a0user:1"]),
        ("kv rollback a0", ["rollback", "a0user:1"]),
        ("kv wait a0", ["wait", "a0user:1"]),
        ("kv set --ttl 7", ["set", "--ttl", "7"]),
        ("kv set --ttl=1", ["set", "--ttl=1"]),
        ("kv diff 5m n", ["diff", "5m", "now"]),
        ("kv help tim", ["help", "times"]),
        ("kv set --key a0", ["set", "--key", "a0user:1"]),
        ("kv set a=@fi", ["set", "a=@file one"]),
        ("kv set x=1 a=@folder/", ["set", "x=1", "a=@folder/inner"]),
        ("true | kv get a0", ["get", "a0user:1"]),
        ("true; kv get a0", ["get", "a0user:1"]),
        ("true && kv get a0", ["get", "a0user:1"]),
        ("X=1 kv get a0", ["get", "a0user:1"]),
        # Several candidates: TAB adds what they have in common.
        ("kv get w", ["get", "w/"]),
        ("kv get many", ["get", "many0"]),
        # No candidates: no file names in place of keys, nothing for a value.
        ("kv get fi", ["get", "fi"]),
        ("kv set a=fi", ["set", "a=fi"]),
        ("kv get z1", ["get", "z1"]),
        ("kv get z2", ["get", "z2"]),
        ("kv metrics fi", ["metrics", "fi"]),
        ("kv nonsense a0", ["nonsense", "a0"]),
    ],
)
def test_tab_completes_a_line(shell: Shell, typed: str, arguments: list[str]) -> None:
    assert shell.tab(typed) == arguments


@pytest.mark.parametrize("key", PATTERNS)
def test_tab_expands_and_executes_nothing_that_it_offers(shell: Shell, key: str) -> None:
    head = key[:2]
    for name in (f"{head}';touch PWN;#", f'{head}";touch PWN;#', f"{head}$(touch PWN)", f"{head}x"):
        (shell.folder / name).write_text("")
    for quote in ("", "'", '"'):
        assert shell.tab(f"kv get {quote}{head}") == ["get", key]
    assert not (shell.folder / "PWN").exists()


@pytest.mark.parametrize("kind", SHELLS)
def test_tab_without_a_daemon_changes_nothing(kind: str, alone: "Kv", tmp_path: pathlib.Path) -> None:
    if not shutil.which(kind):
        pytest.skip(f"no {kind} here")
    session = Shell(kind, tmp_path, ROOT / "completions", alone.environment())
    try:
        assert session.tab("kv get a") == ["get", "a"]
        assert session.tab("kv g") == ["get"]
    finally:
        session.close()


@pytest.mark.parametrize("kind", SHELLS)
def test_kv_completion_prints_the_files_in_completions(kind: str, alone: "Kv") -> None:
    file = ROOT / "completions" / SCRIPTS[kind]
    assert alone.ok("completion", kind) == file.read_text(), f"run: kv completion {kind} > completions/{SCRIPTS[kind]}"


def test_zsh_takes_the_script_by_source(filled: "Kv", tmp_path: pathlib.Path) -> None:
    if not shutil.which("zsh"):
        pytest.skip("no zsh here")
    empty = tmp_path / "empty"
    empty.mkdir()
    session = Shell("zsh", tmp_path, empty, filled.environment())
    try:
        session.enter(f"source {ROOT}/completions/_kv; kv x")
        assert session.tab("kv get a0") == ["get", "a0user:1"]
    except pexpect.TIMEOUT:
        pytest.fail("nothing was completed")
    finally:
        session.close()
