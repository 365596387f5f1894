"""kvd.toml is the manual: it lists every option with its real default and its real bounds."""

import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from kvd.service.config.checks import LOG_TARGETS
from kvd.service.config.loader import load
from kvd.service.config.options import BOUNDS, LOG_LEVELS, OPTIONS
from kvd.service.config.sections import SECTIONS, Config
from kvd.store.prefixes import PrefixRule

MANUAL = Path(__file__).parents[2] / "kvd.toml"
# "#option = value" is an option; "# text" explains.
OPTION_LINE = re.compile(r"^#(?=[a-z])", re.MULTILINE)


def uncommented() -> str:
    return OPTION_LINE.sub("", MANUAL.read_text(encoding="utf-8"))


def explanation_of(key: str) -> str:
    """The comment directly above an option, in one line."""
    section, _, name = key.partition(".")
    of_section = MANUAL.read_text(encoding="utf-8").split(f"\n[{section}]\n")[1]
    lines = of_section.split(f"\n#{name} = ")[0].split("\n\n")[-1].splitlines()
    return " ".join(line.removeprefix("# ") for line in lines)


def test_the_unchanged_file_changes_nothing() -> None:
    parsed = tomllib.loads(MANUAL.read_text(encoding="utf-8"))
    assert parsed == {section: {} for section in SECTIONS}


def test_uncommenting_everything_parses_to_the_defaults() -> None:
    assert msgspec.convert(tomllib.loads(uncommented()), Config) == Config()


def test_every_option_is_listed_with_its_real_default() -> None:
    parsed = tomllib.loads(uncommented())
    named = {
        f"{section}.{name}": tuple(value) if isinstance(value, list) else value
        for section, options in parsed.items()
        for name, value in options.items()
    }
    assert named == {key: option.default for key, option in OPTIONS.items()}


def test_the_examples_of_prefixes_use_every_option_and_are_valid(tmp_path: Path) -> None:
    """The examples, of a cache and of a tenant, stand in a comment."""
    manual = MANUAL.read_text(encoding="utf-8")
    of_prefixes = manual[manual.index("#     [[prefix]]") : manual.index("# Who may do what")]
    example = re.sub("^#", "", of_prefixes, flags=re.MULTILINE)
    file = tmp_path / "kvd.toml"
    file.write_text(example)
    file.chmod(0o600)
    rules = load({}, {}, str(file)).prefix
    assert [rule.prefix for rule in rules] == ["cache/", "tenant/a/"]
    fields = msgspec.structs.fields(PrefixRule)
    assert {field.name for field in fields} == {each for table in tomllib.loads(example)["prefix"] for each in table}


@pytest.mark.parametrize("key", OPTIONS)
def test_every_option_is_explained_by_a_comment_above_it(key: str) -> None:
    assert len(explanation_of(key)) >= 40


@pytest.mark.parametrize("key", BOUNDS)
def test_the_bounds_of_every_number_are_named(key: str) -> None:
    numbers = [int(number) for number in re.findall(r"\b\d+\b", explanation_of(key))]
    minimum, maximum = BOUNDS[key]
    assert minimum in numbers
    assert maximum in numbers


@pytest.mark.parametrize(("key", "choices"), [("log.level", LOG_LEVELS), ("log.to", LOG_TARGETS)])
def test_the_choices_are_named(key: str, choices: tuple[str, ...]) -> None:
    for choice in choices:
        assert f'"{choice}"' in explanation_of(key)
