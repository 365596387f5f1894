"""requirements-dev.txt pins, with hashes, all that pyproject.toml asks for, and names no place to fetch it from."""

import re
import tomllib
from collections.abc import Iterator

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.project.conftest import ROOT

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
LOCK = (ROOT / "requirements-dev.txt").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NOT_LOCKED = {"bench"}  # extras that development does not install


def pins(text: str) -> dict[str, tuple[Requirement, list[str]]]:
    """Each pinned requirement of a lock file, by its name, with its hashes."""
    joined = re.sub(r"\\\n\s*", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE))
    entries = [line.split(" --hash=") for line in joined.splitlines() if line.strip()]
    requirements = [(Requirement(head), [word.strip() for word in hashes]) for head, *hashes in entries]
    return {canonicalize_name(requirement.name): (requirement, hashes) for requirement, hashes in requirements}


def asked_for() -> Iterator[Requirement]:
    """What the project, its extras and its build need. `kvd[...]` names the project's own extras."""
    extras = PROJECT["project"]["optional-dependencies"]
    lists = [PROJECT["project"]["dependencies"], PROJECT["build-system"]["requires"]]
    lists += [extras[name] for name in extras.keys() - NOT_LOCKED]
    return (requirement for texts in lists for requirement in map(Requirement, texts) if requirement.name != "kvd")


PINS = pins(LOCK)
NEEDED = {str(requirement): requirement for requirement in asked_for()}


@pytest.mark.parametrize("requirement", NEEDED.values(), ids=str)
def test_each_requirement_is_pinned_to_a_version_that_it_allows(requirement: Requirement) -> None:
    pinned, _ = PINS[canonicalize_name(requirement.name)]
    [specifier] = pinned.specifier
    assert specifier.operator == "=="
    assert requirement.specifier.contains(specifier.version, prereleases=True)


@pytest.mark.parametrize("python", PYTHONS)
def test_each_requirement_is_installed_on_every_python(python: str) -> None:
    environment = {**default_environment(), "python_version": python, "python_full_version": f"{python}.0"}
    for requirement in NEEDED.values():
        marker = PINS[canonicalize_name(requirement.name)][0].marker
        assert marker is None or marker.evaluate(environment), requirement


def test_everything_is_pinned_with_hashes() -> None:
    assert len(PINS) > len(NEEDED)
    for name, (requirement, hashes) in PINS.items():
        assert [specifier.operator for specifier in requirement.specifier] == ["=="], name
        assert requirement.url is None, name
        assert hashes, name
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in hashes), name


def test_the_lock_names_no_place_to_fetch_from() -> None:
    assert not re.search(r"://|--(extra-)?index-url|--find-links|--trusted-host", LOCK)


def test_a_pin_without_a_hash_is_found() -> None:
    found = pins(
        "# head\none==1 \\\n    --hash=sha256:ab \\\n    --hash=sha256:cd\n    # via kvd\ntwo==2 ; os_name == 'nt'\n"
    )
    assert found["one"][1] == ["sha256:ab", "sha256:cd"]
    assert found["two"][1] == []
