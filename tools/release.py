"""Make a release out of a clean checkout: write the version and the date, commit, tag. Called by `make release`.

The version stands in `kvd/__init__.py` alone; the build backend and the command read it there. CHANGELOG.md must have
a section `## [VERSION] - Unreleased`, which gets today's date. docs/releasing.md tells what comes before and after.
"""

import datetime
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
SOURCE = ROOT / "kvd/__init__.py"
CHANGELOG = ROOT / "CHANGELOG.md"
VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)((?:a|b|rc)[1-9]\d*)?")
ASSIGNMENT = re.compile(r'^__version__ = "(.+)"$', re.MULTILINE)


class NotReady(Exception):
    """The release cannot be made; the text says what to do first."""


def with_version(source: str, version: str) -> str:
    """``source`` with ``version`` as its ``__version__``."""
    if not VERSION.fullmatch(version):
        raise NotReady(f"{version!r} is not a version such as 1.2.3 or 1.2.3rc1: make release VERSION=1.2.3")
    return ASSIGNMENT.sub(f'__version__ = "{version}"', source)


def with_date(changelog: str, version: str, day: str) -> str:
    """``changelog`` with ``day`` as the date of the section of ``version``."""
    head = f"## [{version}] - Unreleased\n"
    if changelog.count(head) != 1:
        raise NotReady(f"CHANGELOG.md needs one section {head.strip()!r}")
    return changelog.replace(head, f"## [{version}] - {day}\n")


def notes(changelog: str, version: str) -> str:
    """What the section of ``version`` says."""
    _, _, section = changelog.partition(f"## [{version}] - ")
    return section.partition("\n")[2].partition("\n## [")[0].strip()


def git(*arguments: str) -> str:
    """Run git here. Returns what it printed."""
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout  # noqa: S603, S607


def release(version: str, day: str) -> None:
    """Commit and tag ``version``."""
    source, changelog = with_version(SOURCE.read_text(), version), with_date(CHANGELOG.read_text(), version, day)
    if git("status", "--porcelain"):
        raise NotReady("commit or remove what `git status` shows first")
    if git("tag", "--list", f"v{version}"):
        raise NotReady(f"the tag v{version} is there already")
    SOURCE.write_text(source)
    CHANGELOG.write_text(changelog)
    git("commit", "--all", "--message", f"release: {version}")
    message = f"kvd {version}\n\n{notes(changelog, version)}\n"
    git("tag", "--annotate", "--cleanup=verbatim", f"v{version}", "--message", message)


if __name__ == "__main__":
    try:
        release("".join(sys.argv[1:]), datetime.date.today().isoformat())  # noqa: DTZ011 (the day of who releases)
    except NotReady as error:
        sys.exit(f"Not released: {error}")
    print("Committed and tagged. Next: make dist, then git push --follow-tags. See docs/releasing.md.")
