"""Who may connect: the socket's mode and group decide, and at no moment may anyone else."""

import grp
import json
import os
import select
import stat
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.harness.scale import TIMES
from tests.harness.waiting import DEADLINE_S

if TYPE_CHECKING:
    from tests.harness.real_daemon import RealDaemon

STARTS = 12 * TIMES
OTHER_UID = 65533
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user")
# Looks at every socket in the directory $1 and tries to connect, as fast as it can, until its stdin ends. Says so once
# it has seen $2 sockets.
INTRUDER = """
import json, os, select, socket, stat, sys
modes, connected, rounds, enough = {}, 0, 0, int(sys.argv[2])
print("looking", flush=True)
while not select.select([0], [], [], 0)[0]:
    rounds += 1
    for entry in os.listdir(sys.argv[1]):
        path = sys.argv[1] + "/" + entry
        try:
            found = os.lstat(path).st_mode
        except FileNotFoundError:
            continue
        if stat.S_ISSOCK(found):
            mode = oct(stat.S_IMODE(found))
            modes[mode] = modes.get(mode, 0) + 1
            enough -= 1
            if enough == 0:
                print("seen enough", flush=True)
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as asking:
                connected += asking.connect_ex(path) == 0
print(json.dumps([modes, connected, rounds]))
"""


def mode_of(path: str) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def pings_as(kvd: "RealDaemon", uid: int, *groups: int) -> bool:
    """Return whether the daemon answers another user, who is a member of these groups."""
    result = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-m", "kv", "-s", kvd.path, "ping", "-q"], env=kvd.environment(), cwd="/",
        user=uid, group=uid, extra_groups=groups, capture_output=True, timeout=30, check=False,
    )  # fmt: skip
    assert result.returncode in (0, 4), result.stderr
    return result.returncode == 0


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_the_socket_the_lock_and_the_log_are_private_whatever_the_umask(kvd: "RealDaemon", umask: int) -> None:
    process = kvd.start(umask=umask)
    kvd.wait_until_it_answers()
    assert (mode_of(kvd.path), mode_of(kvd.lock_path), mode_of(kvd.log_path)) == (0o600, 0o600, 0o600)
    assert kvd.stop(process) == 0


def test_the_files_of_a_detached_daemon_are_private_too(kvd: "RealDaemon") -> None:
    kvd.detach(umask=0)
    assert (mode_of(kvd.path), mode_of(kvd.lock_path), mode_of(kvd.log_path)) == (0o600, 0o600, 0o600)


@needs_root
def test_by_default_no_other_user_can_connect(kvd: "RealDaemon") -> None:
    os.chmod(kvd.folder, 0o755)  # noqa: S103 - a directory of the test's own
    kvd.serve()
    assert not pings_as(kvd, OTHER_UID)


@needs_root
def test_with_a_group_only_its_members_can_connect(kvd: "RealDaemon") -> None:
    os.chmod(kvd.folder, 0o755)  # noqa: S103 - a directory of the test's own
    group = next(entry for entry in grp.getgrall() if entry.gr_gid not in (0, os.getegid()))
    kvd.serve("--socket-mode", "0660", "--socket-group", group.gr_name)
    assert (mode_of(kvd.path), os.lstat(kvd.path).st_gid) == (0o660, group.gr_gid)
    assert pings_as(kvd, OTHER_UID, group.gr_gid)
    assert not pings_as(kvd, OTHER_UID)


@needs_root
@pytest.mark.parametrize(("flags", "allowed"), [([], {"0o600"}), (["--socket-mode", "0660"], {"0o600", "0o660"})])
def test_there_is_no_moment_when_another_user_could_connect(
    kvd: "RealDaemon", flags: list[str], allowed: set[str]
) -> None:
    """Neither to the socket at its path nor to the socket under its temporary name."""
    os.chmod(kvd.folder, 0o755)  # noqa: S103 - a directory of the test's own
    intruder = subprocess.Popen(  # noqa: S603 - our own code
        [sys.executable, "-c", INTRUDER, kvd.folder, str(STARTS)], cwd="/",
        user=OTHER_UID, group=OTHER_UID, extra_groups=[],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert intruder.stdout is not None
    assert intruder.stdout.readline() == "looking\n"
    starts, deadline = 0, time.monotonic() + DEADLINE_S
    # On a busy machine the intruder may need more of them.
    while starts < STARTS or (not select.select([intruder.stdout], [], [], 0)[0] and time.monotonic() < deadline):
        kvd.stop(kvd.serve(*flags, umask=0))
        starts += 1
    modes, connected, rounds = json.loads(intruder.communicate("\n", timeout=DEADLINE_S)[0].splitlines()[-1])
    assert connected == 0
    assert set(modes) <= allowed
    assert sum(modes.values()) >= STARTS, f"the intruder saw too few sockets in {rounds} rounds"
