"""The pages: every relative link leads to a file and to a heading, and every path of the repository exists."""

import pathlib
import re
from collections.abc import Iterator

import pytest

from tests.project.conftest import ROOT, pages

PAGES = pages()
LINK = re.compile(r"!?\[[^\]\n]*\]\(([^)\s]+)\)")
# `kvd/store/store.py`, `tests/live`, `docs/formats.md`: in code, with a slash, below a folder of the repository.
NAMED = re.compile(r"`((?:kvd|kv|tests|bench|docs|deploy|systemd|completions|tools|\.ci|\.github)/[\w./-]*)`")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
# Paths that an example makes up, or that are made: bench/results is not in git.
NOT_HERE = {"bench/results/"}


def anchor(heading: str) -> str:
    """A heading as forges make it the end of a link."""
    plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def anchors(page: pathlib.Path) -> set[str]:
    """All headings of a page, as ends of links."""
    return {anchor(line.lstrip("#")) for line in FENCE.sub("", page.read_text()).splitlines() if line.startswith("#")}


def dead_links(page: pathlib.Path, text: str) -> Iterator[str]:
    """The relative links of ``text``, as written on ``page``, that lead nowhere."""
    for link in LINK.findall(FENCE.sub("", text)):
        path, _, end = link.partition("#")
        if re.match(r"\w+:", link):
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (end and target.suffix == ".md" and end not in anchors(target)):
            yield link


def missing_paths(text: str) -> Iterator[str]:
    """The paths of the repository that ``text`` names and that do not exist."""
    return (path for path in NAMED.findall(text) if path not in NOT_HERE and not (ROOT / path).exists())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: pathlib.Path) -> None:
    assert list(dead_links(page, page.read_text())) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_that_is_named_exists(page: pathlib.Path) -> None:
    assert list(missing_paths(page.read_text())) == []


def test_the_pages_are_found() -> None:
    names = {str(page.relative_to(ROOT)) for page in PAGES}
    assert {"README.md", "CONTRIBUTING.md", "docs/protocol.md", "tests/README.md", "bench/README.md"} <= names


@pytest.mark.parametrize("link", ["nowhere.md", "docs/nowhere.md", "README.md#no-such-heading", "#no-such-heading"])
def test_a_dead_link_is_found(link: str) -> None:
    assert list(dead_links(ROOT / "CHANGELOG.md", f"see [this]({link})")) == [link]


def test_a_path_that_is_gone_is_found() -> None:
    assert list(missing_paths("`kvd/store/store.py`, `kvd/nothing.py` and `tests/nothing/`")) == [
        "kvd/nothing.py", "tests/nothing/",
    ]  # fmt: skip


def test_the_index_names_every_page_of_docs() -> None:
    index = (ROOT / "docs/README.md").read_text()
    missing = [page.name for page in (ROOT / "docs").glob("*.md") if f"({page.name})" not in index]
    assert missing == ["README.md"]


def test_the_index_of_decisions_names_every_decision_under_its_title() -> None:
    folder = ROOT / "docs/decisions"
    rows = re.findall(r"^\| \[(\d{4})\]\(([^)]+)\) \| (.+) \|$", (folder / "README.md").read_text(), re.MULTILINE)
    decisions = sorted(path.name for path in folder.glob("[0-9]*.md"))
    assert [name for _, name, _ in rows] == decisions
    assert [number for number, _, _ in rows] == [f"{number:04}" for number in range(1, len(rows) + 1)]
    for number, name, title in rows:
        assert name.startswith(f"{number}-")
        first, _, rest = (folder / name).read_text().partition("\n")
        assert first == f"# {number}: {title}"
        assert re.search(r"^Status: ", rest, re.MULTILINE)
        assert all(f"**{part}.**" in rest for part in ("Context", "Decision", "Consequences"))
