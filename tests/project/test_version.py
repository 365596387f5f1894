"""The version: one source, which the command, the package, the installed metadata and the wheel agree on."""

import importlib.metadata
import pathlib
import re
import subprocess
import sys
import tomllib
import zipfile

import kvd
from tests.project.conftest import ROOT


def run(*arguments: str) -> str:
    """What our own interpreter prints when it is called with ``arguments``. Must succeed."""
    done = subprocess.run(  # noqa: S603 (our own interpreter)
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_version_stands_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"] == {"path": "kvd/__init__.py"}
    assignments = [
        path.relative_to(ROOT)
        for folder in ("kvd", "kv", "bench", "tools")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"^__version__\s*=", path.read_text(), re.MULTILINE)
    ]
    assert assignments == [pathlib.Path("kvd/__init__.py")]


def test_the_command_prints_it() -> None:
    assert run("-m", "kv", "version").split()[:2] == ["kv", kvd.__version__]
    assert run("-m", "kv", "--version").split()[:2] == ["kv", kvd.__version__]


def test_the_installed_metadata_has_it() -> None:
    assert importlib.metadata.version("kvd") == kvd.__version__


def test_the_wheel_has_it(tmp_path: pathlib.Path) -> None:
    run("-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path))
    [wheel] = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"kvd-{kvd.__version__}-")
    metadata = zipfile.ZipFile(wheel).read(f"kvd-{kvd.__version__}.dist-info/METADATA").decode()
    assert f"\nVersion: {kvd.__version__}\n" in metadata


def test_the_changelog_begins_with_it_or_a_later_one() -> None:
    newest = re.search(r"^## \[(\d+)\.(\d+)\.(\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    ours = re.match(r"(\d+)\.(\d+)\.(\d+)", kvd.__version__)
    assert ours is not None
    assert tuple(map(int, newest.groups())) >= tuple(map(int, ours.groups()))
