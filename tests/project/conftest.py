"""What the tests of the repository itself share: where it is, and its files."""

import pathlib

ROOT = pathlib.Path(__file__).parents[2]
# What is made in a checkout, or fetched into it.
_MADE = {".git", ".venv", "build", "dist", "__pycache__", ".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache"}


def pages() -> list[pathlib.Path]:
    """Every page of Markdown in the repository."""
    return sorted(path for path in ROOT.rglob("*.md") if not _MADE & set(path.relative_to(ROOT).parts))
