"""The daemon as a container runs it: as the first process, on a read-only root, and as an unknown user."""

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
# Everything is read-only except the daemon's two directories.
READ_ONLY = [
    "unshare", "--mount", "sh", "-euc",
    "for each in run data; do mount --bind {folder}/$each {folder}/$each; done; mount -o remount,ro,bind /;"
    ' ! touch {folder}/x /etc/x /tmp/x 2>/dev/null; exec "$@"', "sh",
]  # fmt: skip
UNKNOWN_USER = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_process_stops_in_order_at_a_signal(contain: "Contain", number: signal.Signals) -> None:
    """For a first process, the kernel ignores every signal without a handler."""
    require("unshare", root=True)
    daemon = contain(FIRST, "--data-dir", "{folder}/data/kvd")
    daemon.kv("set", "a=1")
    os.kill(daemon.pid, number)
    status, output = daemon.end()
    assert status == 0
    assert f"stopping: {number.name}" in output
    assert "stopped: pid 1\n" in output  # its pid inside
    assert not os.path.exists(daemon.environment["KVD_SOCKET"])
    again = contain(FIRST, "--data-dir", "{folder}/data/kvd")
    assert again.kv("get", "a") == "a: 1\n"


def test_the_first_process_leaves_no_zombies(contain: "Contain") -> None:
    """An orphan in the container becomes a child of the first process, which makes no children itself."""
    require("unshare", "nsenter", root=True)
    daemon = contain(FIRST)
    daemon.kv("set", "a=1")
    assert children(daemon.pid) == []
    enter = ["nsenter", f"--target={daemon.pid}", "--pid"]
    # `cat` outlives the shell that starts it, and then is the daemon's child. It ends when its input ends.
    orphan = subprocess.Popen(  # noqa: S603 - the test's own orphan
        [*enter, "sh", "-c", "(cat <&3 >/dev/null & ) 3<&0"], stdin=subprocess.PIPE, env=ENVIRONMENT
    )
    assert orphan.wait(DEADLINE_S) == 0
    assert len(children(daemon.pid)) == 1
    assert orphan.stdin is not None
    orphan.stdin.close()
    eventually(lambda: children(daemon.pid) == [])
    assert daemon.kv("get", "a") == "a: 1\n"


def test_only_the_two_directories_must_be_writable(contain: "Contain") -> None:
    require("unshare", "mount", root=True)
    daemon = contain(READ_ONLY, "--data-dir", "{folder}/data/kvd")
    assert daemon.kv("set", "a=1") == "Keys set\n"
    assert daemon.kv("checkpoint")
    os.kill(daemon.wrapper.pid, signal.SIGTERM)
    status, output = daemon.end()
    assert (status, "ERROR" in output, "WARNING" in output) == (0, False, False)


def test_the_daemon_may_run_as_an_unknown_user(contain: "Contain") -> None:
    """Without a line in passwd, a home, groups or capabilities, on a read-only root, and as the first process."""
    require("unshare", "setpriv", root=True)
    daemon = contain([*READ_ONLY, *FIRST, *UNKNOWN_USER], "--data-dir", "{folder}/data/kvd")
    pid = children(daemon.wrapper.pid)[0]
    assert pathlib.Path(f"/proc/{pid}").stat().st_uid == 12345
    assert daemon.kv("set", "a=1", wrapper=tuple(UNKNOWN_USER)) == "Keys set\n"
    assert "uid 12345 pid" in daemon.kv("log", wrapper=tuple(UNKNOWN_USER))
    assert daemon.kv("checkpoint", wrapper=tuple(UNKNOWN_USER))  # the daemon's own user is an administrator
    os.kill(int(pid), signal.SIGTERM)
    assert daemon.end()[0] == 0
    assert pathlib.Path(daemon.folder, "data/kvd").stat().st_uid == 12345


def test_a_user_without_a_home_gets_the_systems_socket_and_no_directory_named_tilde(tmp_path: pathlib.Path) -> None:
    require("setpriv", root=True)
    tmp_path.chmod(0o777)
    result = subprocess.run(  # noqa: S603 - the command under test
        [*UNKNOWN_USER, *KV, "serve"], env=ENVIRONMENT, cwd=tmp_path,
        capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert result.returncode == 74
    assert "/run/kvd" in result.stderr
    assert list(tmp_path.iterdir()) == []
