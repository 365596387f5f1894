"""``make run``: a daemon of the checkout's own, whatever else runs on the machine and whatever the shell has set."""

import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.harness.daemon import Daemon, new_folders, see_all_end
from tests.harness.waiting import DEADLINE_S

CHECKOUT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def production() -> Iterator[Daemon]:
    """A daemon that the shell's variables name, and whose data nothing may touch."""
    with new_folders() as new_folder:
        daemon = Daemon(new_folder(), "")
        daemon.kv.ok("set", "cake=of the production")
        yield daemon
        assert "of the production" in daemon.kv.ok("get", "cake")
        see_all_end([daemon])


@pytest.fixture
def checkout(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A copy of what `make run` looks at, with the command of this environment as if it was installed there."""
    for name in ("kv", "kvd"):
        shutil.copytree(CHECKOUT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(CHECKOUT / name, tmp_path / name)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    command = tmp_path / ".venv/bin/kv"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m kv "$@"\n')
    command.chmod(0o755)
    yield tmp_path
    subprocess.run(  # noqa: S603 (what the test made)
        [command, "shutdown", "-q"], env={**os.environ, "KVD_SOCKET": f"{tmp_path}/build/run/kvd.sock"}, check=False
    )


def make_run(checkout: pathlib.Path, production: Daemon) -> str:
    ended = subprocess.run(
        ["make", "--old-file=.venv/.kvd", "run"],  # noqa: S607 (of the PATH)
        cwd=checkout, env={**os.environ, "KVD_SOCKET": production.path, "KVD_DATA_DIR": f"{checkout}/not-this-one"},
        capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_make_run_has_a_daemon_of_its_own_and_replaces_it_once_the_code_is_newer(
    checkout: pathlib.Path, production: Daemon
) -> None:
    first = make_run(checkout, production)
    assert "$ kv serve --daemon\n" in first
    assert "cake: \U0001f382" in first
    assert f'export PATH="{checkout}/.venv/bin:$PATH" KVD_SOCKET="{checkout}/build/run/kvd.sock"' in first
    assert "running already" in make_run(checkout, production)
    started = (checkout / "build/run/started").stat().st_mtime
    os.utime(checkout / "kv/errors.py", (started + 1, started + 1))
    assert "starting it anew" in make_run(checkout, production)
    assert not (checkout / "not-this-one").exists()
    assert (checkout / "build/run").stat().st_mode & 0o777 == 0o700
