"""tools/release.py: what a release writes, commits and tags, and what it refuses."""

import os
import pathlib
import shutil
import subprocess

import pytest

from tools import release

CHANGELOG = """# Changelog

## [1.2.0] - Unreleased

The second.

### Added

- A thing.

## [1.1.0] - 2026-01-02

The first.
"""
SOURCE = '"""A package."""\n\n__version__ = "1.1.0"\n'


def test_the_version_is_written_and_nothing_else() -> None:
    assert release.with_version(SOURCE, "1.2.0") == SOURCE.replace("1.1.0", "1.2.0")


@pytest.mark.parametrize("version", ["1.2.3", "0.0.1", "10.20.30", "1.2.0rc1", "1.2.0a10"])
def test_a_version_is_accepted(version: str) -> None:
    assert f'"{version}"' in release.with_version(SOURCE, version)


@pytest.mark.parametrize("version", ["", "1", "1.2", "v1.2.3", "1.2.3.4", "1.02.3", "1.2.3-rc1", "1.2.0rc0", "1.2.3\n"])
def test_another_text_is_refused(version: str) -> None:
    with pytest.raises(release.NotReady, match="is not a version such as"):
        release.with_version(SOURCE, version)


def test_the_section_gets_its_date() -> None:
    dated = release.with_date(CHANGELOG, "1.2.0", "2026-03-04")
    assert dated == CHANGELOG.replace("[1.2.0] - Unreleased", "[1.2.0] - 2026-03-04")


@pytest.mark.parametrize("version", ["1.3.0", "1.1.0"])
def test_without_an_open_section_nothing_is_released(version: str) -> None:
    with pytest.raises(release.NotReady, match=r"CHANGELOG.md needs one section"):
        release.with_date(CHANGELOG, version, "2026-03-04")


def test_the_notes_are_the_section_of_the_version() -> None:
    assert release.notes(CHANGELOG, "1.2.0") == "The second.\n\n### Added\n\n- A thing."
    assert release.notes(CHANGELOG, "1.1.0") == "The first."


class Checkout:
    """A repository with a changelog and a version, of which ``release`` believes that it is the project's."""

    def __init__(self, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.source, self.changelog = folder / "source.py", folder / "CHANGELOG.md"
        monkeypatch.setattr(release, "ROOT", folder)
        monkeypatch.setattr(release, "SOURCE", self.source)
        monkeypatch.setattr(release, "CHANGELOG", self.changelog)
        for who in ("AUTHOR", "COMMITTER"):
            monkeypatch.setenv(f"GIT_{who}_NAME", "A test")
            monkeypatch.setenv(f"GIT_{who}_EMAIL", "test@example.org")
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
        self.git("init", "--quiet")
        self.source.write_text(SOURCE)
        self.changelog.write_text(CHANGELOG)
        self.git("add", ".")
        self.git("commit", "--quiet", "--message", "first")

    def git(self, *arguments: str) -> str:
        """Run git in it. Returns what it printed."""
        command = ["git", *arguments]
        return subprocess.run(command, cwd=self.folder, check=True, capture_output=True, text=True).stdout  # noqa: S603


@pytest.fixture
def checkout(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    if shutil.which("git") is None and "CI" not in os.environ:
        pytest.skip("no git here")
    return Checkout(tmp_path, monkeypatch)


def test_a_release_is_one_commit_with_a_tag(checkout: Checkout) -> None:
    release.release("1.2.0", "2026-03-04")
    assert checkout.git("log", "--format=%s").split("\n")[0] == "release: 1.2.0"
    assert checkout.git("show", "v1.2.0:source.py") == SOURCE.replace("1.1.0", "1.2.0")
    assert "## [1.2.0] - 2026-03-04\n" in checkout.git("show", "v1.2.0:CHANGELOG.md")
    assert (
        checkout.git("tag", "--list", "--format=%(contents)").strip()
        == f"kvd 1.2.0\n\n{release.notes(CHANGELOG, '1.2.0')}"
    )
    assert checkout.git("status", "--porcelain") == ""


def test_changes_that_are_not_committed_refuse_it_and_nothing_is_written(checkout: Checkout) -> None:
    (checkout.folder / "new").touch()
    with pytest.raises(release.NotReady, match="git status"):
        release.release("1.2.0", "2026-03-04")
    assert (checkout.source.read_text(), checkout.changelog.read_text()) == (SOURCE, CHANGELOG)
    assert checkout.git("tag") == ""


def test_a_tag_that_is_there_refuses_it(checkout: Checkout) -> None:
    checkout.git("tag", "v1.2.0")
    with pytest.raises(release.NotReady, match=r"v1\.2\.0 is there already"):
        release.release("1.2.0", "2026-03-04")
    assert checkout.source.read_text() == SOURCE
