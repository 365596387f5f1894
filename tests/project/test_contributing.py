"""CONTRIBUTING.md and tests/README.md: the targets and folders that they name are there, and none is left out."""

import os
import pathlib
import re
import subprocess

import pytest
import yaml

from tests.project.conftest import ROOT

CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
TESTS = (ROOT / "tests/README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
FOLDERS = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}


@pytest.mark.parametrize(
    "page", ["CONTRIBUTING.md", "README.md", "tests/README.md", "docs/releasing.md", "bench/README.md"]
)
def test_every_target_of_make_that_is_named_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    named = re.findall(r"(?:`|\n|&& )make ((?:[A-Z]+=\S* )*)([a-z][a-z-]*)", text)
    assert {target for _, target in named} <= TARGETS


def test_the_targets_for_the_work_on_it_are_explained() -> None:
    for target in ("quick", "check", "test", "coverage", "lock", "faults", "soak", "bench"):
        assert f"make {target}" in CONTRIBUTING


def test_each_folder_of_tests_is_explained() -> None:
    assert set(re.findall(r"^\| `tests/(\w+)`", TESTS, re.MULTILINE)) == FOLDERS


def test_the_quick_tests_exist() -> None:
    [paths] = re.findall(r"^QUICK_TESTS = ((?:.*\\\n)*.*)$", MAKEFILE, re.MULTILINE)
    names = paths.replace("\\\n", " ").split()
    assert len(names) > 3
    assert [name for name in names if not (ROOT / name).exists()] == []


@pytest.fixture
def failing_tools(tmp_path: pathlib.Path) -> pathlib.Path:
    """An environment in place of .venv whose programs write down how they are called, and fail."""
    (tmp_path / "bin").mkdir()
    for name in ("python", "ruff", "codespell", "mypy", "kv"):
        program = tmp_path / "bin" / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/calls\nexit 1\n')
        program.chmod(0o755)
    for stamp in (".dev", ".kvd"):
        (tmp_path / stamp).touch()
    return tmp_path


def make(environment: pathlib.Path, target: str) -> tuple[str, list[str]]:
    """Make ``target``, which must fail. Returns the summary of its errors, and how the programs were called."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(  # noqa: S603 (our own Makefile)
        ["make", "--no-print-directory", f"VENV={environment}", target],  # noqa: S607
        cwd=ROOT, env=variables, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    return done.stderr.splitlines()[-2], (environment / "calls").read_text().splitlines()


def test_each_part_of_check_runs_though_others_fail(failing_tools: pathlib.Path) -> None:
    summary, calls = make(failing_tools, "check")
    assert calls[:4] == ["ruff check .", "ruff format --check .", "codespell ", "mypy "]
    assert calls[4] == "kv completion bash"
    assert summary == "Failed: lint types generated"


def test_quick_runs_its_tests_though_lint_and_types_fail(failing_tools: pathlib.Path) -> None:
    summary, calls = make(failing_tools, "quick")
    assert calls[-1].startswith("python -m pytest -q ")
    assert summary == "Failed: lint types quick-tests"


def test_the_hooks_call_the_tools_of_the_environment_and_fetch_nothing() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    hooks = config["repos"][0]["hooks"]
    assert {hook["id"] for hook in hooks} == {"ruff", "ruff-format", "mypy", "codespell"}
    for hook in hooks:
        assert hook["language"] == "system"
        assert hook["entry"].startswith(".venv/bin/")
