"""Files and command lines that people get wrong: refused in words, never a fault."""

import random
import string
from pathlib import Path

import pytest

from kv.cli.failures import UsageError
from kv.cli.parser import build_parser, parse, split_command
from kv.cli.registry import COMMANDS
from kvd.service.config.loader import load
from kvd.service.config.options import OPTIONS
from kvd.service.config.sections import Config, Listen
from kvd.service.config.tokens import read_tokens
from kvd.service.errors import ConfigError
from tests.harness.mutations import inputs
from tests.harness.scale import SCALE

FILES = int(1_500 * SCALE)
LINES = int(6_000 * SCALE)
TOKENS = [
    b"0123456789abcdef0123456789abcdef\n",
    b"ann 0123456789abcdef\nbob fedcba9876543210\n",
    "m\u00fcller 0123456789abcdef\n".encode(),
]
# The annotated file with every option in force, and small ones with tables.
ANNOTATED = Path(__file__).parents[2] / "kvd.toml"
TABLES = b"""
[[prefix]]
prefix = "c/"
evict = true
max_bytes = 1000
[[access]]
user = "root"
prefix = "a/"
rights = ["read", "write"]
[limits]
max_connections = 10
[data]
sync = "interval"
"""


def write_private(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    path.chmod(0o600)
    return str(path)


def test_no_configuration_file_is_a_fault(tmp_path: Path) -> None:
    annotated = ANNOTATED.read_bytes()
    in_force = b"\n".join(line.removeprefix(b"#") if b" = " in line else line for line in annotated.splitlines())
    refused: list[str] = []
    for _, data in inputs([annotated, in_force, TABLES, TABLES], FILES):
        path = write_private(tmp_path / "kvd.toml", data)
        try:
            load({}, {}, path)
        except ConfigError as error:
            refused.append(str(error))
    assert FILES // 10 < len(refused) < FILES, "some are refused, and some are in order all the same"
    assert [text for text in refused if not text or "\n" in text] == [], "each reason is one line"


def test_no_token_file_is_a_fault(tmp_path: Path) -> None:
    refused: list[str] = []
    for seed, data in inputs(TOKENS, FILES):
        path = write_private(tmp_path / "tokens", data)
        try:
            tokens = read_tokens(Config(listen=Listen(token_file=path)))
        except ConfigError as error:
            refused.append(str(error))
        else:
            assert tokens
            assert all(16 <= len(token) <= 4096 for token in tokens), seed
    assert FILES // 10 < len(refused) < FILES
    assert all(refused), "each has a reason"


def random_words(chance: random.Random, options: list[str]) -> list[str]:
    odd = [
        "",
        "-",
        "--",
        "---",
        "-=",
        "--=",
        "=",
        "a=b",
        "a=",
        "=b",
        "-5",
        "--ttl",
        "5m",
        "-1",
        "1e999",
        "9" * 400,
        "\udce9",
    ]
    alphabet = string.printable + "\u00e9\U0001f382\udcff\x00"
    words = []
    for _ in range(chance.randint(0, 7)):
        match chance.randrange(5):
            case 0:
                words.append(chance.choice(odd))
            case 1:
                words.append("".join(chance.choices(alphabet, k=chance.randint(1, 12))))
            case 2 if options:
                words.append(f"{chance.choice(options)}={chance.choice(odd)}")
            case _ if options:
                words.append(chance.choice(options))
    return words


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_no_command_line_is_a_fault(command: object) -> None:
    parser = build_parser(command, describe=False)  # type: ignore[arg-type]
    options = sorted(parser._option_string_actions)
    accepted, refused = 0, list[str]()
    for seed in range(LINES // len(COMMANDS)):
        chance = random.Random(seed)  # noqa: S311 - to repeat a failure
        words = random_words(chance, options)
        try:
            before, _, after = split_command([*random_words(chance, ["-q", "-v", "--timeout=3"]), command.name, *words])  # type: ignore[attr-defined]
            parse(parser, before + after, command.load().Options())  # type: ignore[attr-defined]
            accepted += 1
        except UsageError as error:
            refused.append(str(error))
    assert accepted, "some command lines are in order"
    assert all(refused), "each refusal has a reason"


def test_every_option_of_the_configuration_is_damaged_by_the_fuzzer() -> None:
    """The annotated file has them all, so a new option is fuzzed without a line here."""
    text = ANNOTATED.read_text()
    assert all(f"{key.rpartition('.')[2]} =" in text for key in OPTIONS)
