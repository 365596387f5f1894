"""The Makefile in a fresh checkout."""

import pathlib
import re
import shutil
from collections.abc import Iterator

import pytest

from tests.harness.processes import ROOT
from tests.system.conftest import run

TARGETS = {
    "help", "run", "test", "quick", "check", "lint", "fmt", "types", "coverage", "lock", "dist", "release", "bench",
    "faults", "soak", "install", "uninstall", "completions", "clean",
}  # fmt: skip


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pathlib.Path]:
    """A copy of this checkout without generated files. A daemon that a test starts in it is ended."""
    folder = tmp_path_factory.mktemp("checkout") / "kvd"
    generated = shutil.ignore_patterns(".*", "build", "dist", "__pycache__", "results")
    shutil.copytree(ROOT, folder, ignore=generated)
    yield folder
    run("sh", "-c", f"{folder}/.venv/bin/kv --socket {folder}/build/run/kvd.sock shutdown || true")


def test_make_alone_lists_every_target_with_a_sentence() -> None:
    output = run("make").stdout
    listed = dict(re.findall(r"^  (\w+) +(\S.*\.)$", output, re.MULTILINE))
    assert set(listed) >= TARGETS
    assert output == run("make", "help").stdout


def test_every_listed_target_exists() -> None:
    for target in re.findall(r"^  (\w+) ", run("make").stdout, re.MULTILINE):
        run("make", "--dry-run", target)


def test_run_sets_everything_up_shows_the_first_keys_and_can_be_repeated(checkout: pathlib.Path) -> None:
    settings = {"KVD_SOCKET": f"{checkout}/s", "KVD_LOG_TO": f"{checkout}/log"}
    first = run("make", "run", cwd=checkout, **settings).stdout
    assert "$ kv serve --daemon\n$ kv set cake=🎂 horns=😈 smiley=😁\nKeys set\n" in first
    assert "$ kv get cake horns smiley\ncake: 🎂\nhorns: 😈\nsmiley: 😁\n" in first
    assert "kv shutdown" in first
    again = run("make", "run", cwd=checkout, **settings).stdout
    assert again.startswith("This checkout's daemon is running already: using that one.\n$ kv set ")
    assert "Set Operations: 6\n" in again


def test_the_generated_files_are_compared_with_what_is_generated(checkout: pathlib.Path) -> None:
    """Uses the environment of the previous test if that ran."""
    run("make", "generated", cwd=checkout)
    (checkout / "completions/kv.fish").write_text("outdated")
    with pytest.raises(AssertionError, match=r"completions/kv.fish is out of date: run make completions"):
        run("make", "generated", cwd=checkout)
    run("make", "completions", cwd=checkout)
    run("make", "generated", cwd=checkout)


def test_clean_restores_the_fresh_checkout(checkout: pathlib.Path) -> None:
    original = {path.name for path in checkout.iterdir()} - {"s", "s.lock", "log", ".venv", "build"}
    run("sh", "-c", f"{checkout}/.venv/bin/kv --socket {checkout}/s shutdown || true")
    run("make", "clean", cwd=checkout)
    assert {path.name for path in checkout.iterdir()} - {"log"} == original
    assert not list(checkout.rglob("__pycache__"))


def test_without_a_suitable_python_make_says_what_to_install() -> None:
    with pytest.raises(AssertionError, match=r"apt-get install python3-venv"):
        run("make", "run", "VENV=/nonexistent/venv", "PYTHON=")


def test_an_extra_is_installed_on_demand(tmp_path: pathlib.Path) -> None:
    """Also after a stage without the extra. Shown by what make would do."""
    (tmp_path / ".made").touch()
    stage = ("make", "--dry-run", "stage", f"STAGE={tmp_path}")
    assert "pip install" not in run(*stage).stdout
    assert "pip install --quiet --no-compile '.[prometheus]'" in run(*stage, "EXTRAS=prometheus").stdout
