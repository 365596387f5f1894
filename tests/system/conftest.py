"""What the tests of the installed thing share: what `make install` installs, and a machine with a real systemd."""

import os
import pathlib
import subprocess
from collections.abc import Callable

import pytest

from tests.harness.processes import ROOT
from tests.harness.programs import PATH, require

BOX = ROOT / "tests/system/systemd_in_a_box.sh"
DEADLINE_S = 600
# On a busy machine a start takes longer than the 5 s that a person's command waits. No test is about how long.
BOX_TIMEOUT_S = 500
WAIT_S = 300
KV_TIMEOUT_S = 120

Completed = subprocess.CompletedProcess[str]
Box = Callable[[str], Completed]

# A machine with kvd installed for two users, one of whom may use it.
PRELUDE = f"""
set -eu
export PATH={PATH} LC_ALL=C.UTF-8 KVD_TIMEOUT={KV_TIMEOUT_S}
as() {{ user=$1; shift; setpriv --reuid="$user" --regid="$user" --init-groups env HOME=/ "$@"; }}
logged() {{ journalctl --sync; journalctl --quiet --unit=kvd.service --output=cat "$@"; }}
pid() {{ systemctl show --property=MainPID --value kvd.service; }}
until_true() {{ local end=$((SECONDS + {WAIT_S})); while ! "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || {{ echo "not within {WAIT_S} s: $*" >&2; return 1; }}; sleep 0.05; done; }}
make --silent --directory={ROOT} STAGE="$STAGE" --assume-old="$STAGE/.made" install >/dev/null
systemd-sysusers
useradd --no-create-home --user-group --groups kvd alice
useradd --create-home --user-group bob
systemctl daemon-reload
systemctl start kvd.socket
"""


def environment(**more: str) -> dict[str, str]:
    """The environment of a person who has no kvd, and no make around this one."""
    ours = ("KVD_", "MAKE", "MFLAGS", "VIRTUAL_ENV", "XDG_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)} | more


def run(*command: str | pathlib.Path, cwd: pathlib.Path = ROOT, **more: str) -> Completed:
    """Run to the end; what it printed. Must succeed."""
    done = subprocess.run(  # noqa: S603 (the tests' own commands)
        command, cwd=cwd, env=environment(**more), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """What `make stage` makes, by the checkout's code as it is now."""
    folder = tmp_path_factory.mktemp("stage")
    run("make", "stage", f"STAGE={folder}")
    return folder


@pytest.fixture
def install(stage: pathlib.Path) -> Callable[..., Completed]:
    """Runs `make` with these arguments and what was staged."""

    def make(*arguments: str) -> Completed:
        return run("make", f"STAGE={stage}", f"--assume-old={stage}/.made", *arguments)

    return make


@pytest.fixture
def box(stage: pathlib.Path, tmp_path: pathlib.Path) -> Box:
    """Runs a script on a machine of its own, with a real systemd, on which `make install` has been run."""
    require("systemd-nspawn", "unshare", "setpriv", "pgrep", "dbus-daemon", "make", root=True)
    bind = " ".join(str(folder) for folder in (ROOT, stage))

    def boot(script: str) -> Completed:
        (tmp_path / "script").write_text(PRELUDE + script)
        settings = {"STAGE": str(stage), "BOX_BIND_RO": bind, "BOX_TIMEOUT": str(BOX_TIMEOUT_S)}
        return run(BOX, tmp_path, "bash", "script", cwd=tmp_path, **settings)

    return boot
