"""What a container asks of a process: to be the first, to stop when told, to write only where it may, to be anybody."""

import os
import pathlib
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.containers.conftest import ENVIRONMENT, children
from tests.harness.processes import KV
from tests.harness.programs import require
from tests.harness.waiting import DEADLINE_S, eventually

if TYPE_CHECKING:
    from tests.containers.conftest import Contain

FIRST = ["unshare", "--pid", "--fork", "--mount-proc"]
# Everything is read-only but the two directories of the daemon.
READ_ONLY = [
    "unshare", "--mount", "sh", "-euc",
    "for each in run data; do mount --bind {folder}/$each {folder}/$each; done; mount -o remount,ro,bind /;"
    ' ! touch {folder}/x /etc/x /tmp/x 2>/dev/null; exec "$@"', "sh",
]  # fmt: skip
ANYBODY = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_process_stops_in_order_when_it_is_told_to(contain: "Contain", number: signal.Signals) -> None:
    """The kernel ignores for a first process every signal that it has no handler for."""
    require("unshare", root=True)
    daemon = contain(FIRST, "--data-dir", "{folder}/data/kvd")
    daemon.kv("set", "a=1")
    os.kill(daemon.pid, number)
    status, said = daemon.end()
    assert status == 0
    assert f"stopping: {number.name}" in said
    assert "stopped: pid 1\n" in said  # as it sees itself
    assert not os.path.exists(daemon.environment["KVD_SOCKET"])
    again = contain(FIRST, "--data-dir", "{folder}/data/kvd")
    assert again.kv("get", "a") == "a: 1\n"


def test_the_first_process_leaves_no_zombies(contain: "Contain") -> None:
    """Whoever loses its parent in the container becomes its child; it makes none itself."""
    require("unshare", "nsenter", root=True)
    daemon = contain(FIRST)
    daemon.kv("set", "a=1")
    assert children(daemon.pid) == []
    enter = ["nsenter", f"--target={daemon.pid}", "--pid"]
    # `cat` outlives the shell that started it, and is ours then; it ends when its input does.
    left = subprocess.Popen(  # noqa: S603 - the test's own orphan
        [*enter, "sh", "-c", "(cat <&3 >/dev/null & ) 3<&0"], stdin=subprocess.PIPE, env=ENVIRONMENT
    )
    assert left.wait(DEADLINE_S) == 0
    assert len(children(daemon.pid)) == 1
    assert left.stdin is not None
    left.stdin.close()
    eventually(lambda: children(daemon.pid) == [])
    assert daemon.kv("get", "a") == "a: 1\n"


def test_nothing_but_the_two_directories_has_to_be_writable(contain: "Contain") -> None:
    require("unshare", "mount", root=True)
    daemon = contain(READ_ONLY, "--data-dir", "{folder}/data/kvd")
    assert daemon.kv("set", "a=1") == "Keys set\n"
    assert daemon.kv("checkpoint")
    os.kill(daemon.wrapper.pid, signal.SIGTERM)
    status, said = daemon.end()
    assert (status, "ERROR" in said, "WARNING" in said) == (0, False, False)


def test_it_may_be_a_user_whom_nobody_knows(contain: "Contain") -> None:
    """Without a line in passwd, a home, groups or capabilities; and all is read-only, and it is the first process."""
    require("unshare", "setpriv", root=True)
    daemon = contain([*READ_ONLY, *FIRST, *ANYBODY], "--data-dir", "{folder}/data/kvd")
    pid = children(daemon.wrapper.pid)[0]
    assert pathlib.Path(f"/proc/{pid}").stat().st_uid == 12345
    assert daemon.kv("set", "a=1", wrapper=tuple(ANYBODY)) == "Keys set\n"
    assert "uid 12345 pid" in daemon.kv("log", wrapper=tuple(ANYBODY))
    assert daemon.kv("checkpoint", wrapper=tuple(ANYBODY))  # it administers its own daemon
    os.kill(int(pid), signal.SIGTERM)
    assert daemon.end()[0] == 0
    assert pathlib.Path(daemon.folder, "data/kvd").stat().st_uid == 12345


def test_a_user_without_a_home_gets_the_systems_socket_and_no_directory_called_tilde(tmp_path: pathlib.Path) -> None:
    require("setpriv", root=True)
    tmp_path.chmod(0o777)
    done = subprocess.run(  # noqa: S603 - the command under test
        [*ANYBODY, *KV, "serve"], env=ENVIRONMENT, cwd=tmp_path,
        capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 74
    assert "/run/kvd" in done.stderr
    assert list(tmp_path.iterdir()) == []
