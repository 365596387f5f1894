"""The workflows of the forge: valid by its schema, on every Python that is supported, and nothing but `.ci/run`."""

import pathlib
import re
import subprocess
import sys
from typing import Any

import pytest
import yaml

from tests.project.conftest import ROOT
from tests.project.test_lock import PYTHONS

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def validate(schema: str, path: pathlib.Path) -> subprocess.CompletedProcess[str]:
    """What check-jsonschema says of a file, by a schema that it brings along."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603


def job(name: str) -> dict[str, Any]:
    [run] = yaml.safe_load((ROOT / ".github/workflows" / name).read_text())["jobs"].values()
    return dict(run)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_follows_the_schema(path: pathlib.Path) -> None:
    done = validate("vendor.github-workflows", path)
    assert done.returncode == 0, done.stdout


def test_a_mistake_in_a_workflow_is_found(tmp_path: pathlib.Path) -> None:
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(WORKFLOWS[0].read_text().replace("runs-on:", "runs-in:"))
    assert validate("vendor.github-workflows", wrong).returncode != 0


def test_the_chooser_of_issues_follows_the_schema() -> None:
    done = validate("vendor.github-issue-config", ROOT / ".github/ISSUE_TEMPLATE/config.yml")
    assert done.returncode == 0, done.stdout


def test_ci_runs_on_every_python() -> None:
    assert job("ci.yml")["strategy"]["matrix"]["python"] == list(PYTHONS)
    assert set(job("newest.yml")["strategy"]["matrix"]["python"]) <= set(PYTHONS)


@pytest.mark.parametrize(("name", "arguments"), [("ci.yml", ""), ("newest.yml", " LOCK=")])
def test_the_only_command_is_the_one_that_holds_everywhere(name: str, arguments: str) -> None:
    commands = [step["run"] for step in job(name)["steps"] if "run" in step]
    assert commands == [f".ci/run PYTHON=/usr/local/bin/python3{arguments}"]


def test_ci_hands_its_arguments_to_every_make() -> None:
    makes = re.findall(r"^make .*$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert len(makes) == 2
    assert all(line.startswith('make "${variables[@]}" ') for line in makes)
