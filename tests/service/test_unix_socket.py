"""The listening socket: it replaces a stale socket but never a live one, and is never too open."""

import grp
import os
import pathlib
import re
import socket
import stat
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator

import pytest

from kvd.service.errors import StartError
from kvd.service.unix_socket import bind_unix_socket, make_directory, remove_socket, socket_inode

Python = Callable[..., "subprocess.CompletedProcess[bytes]"]
MAX_PATH_BYTES = 107


@pytest.fixture
def folder() -> Iterator[str]:
    """A directory with a short name, as a socket's path may have 107 bytes."""
    with tempfile.TemporaryDirectory() as name:
        yield name


@pytest.fixture
def path(folder: str) -> str:
    return f"{folder}/s"


def mode_of(path: str) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def connects(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(path) == 0


def leave_stale_socket(path: str, kind: int = socket.SOCK_STREAM) -> tuple[int, int]:
    """Make a socket file that no process serves any more; return its inode."""
    with socket.socket(socket.AF_UNIX, kind) as dead:
        dead.bind(path)
    inode = socket_inode(path)
    assert inode is not None
    return inode


def refusal(path: str, exit_code: int, mode: int = 0o600, group: str = "") -> str:
    before = sorted(os.listdir(os.path.dirname(path)))
    with pytest.raises(StartError) as failure:
        bind_unix_socket(path, mode, group)
    assert failure.value.exit_code == exit_code
    assert sorted(os.listdir(os.path.dirname(path))) == before, "something was left or taken away"
    return failure.value.text


# ---------------------------------------------------------------------- a new socket


def test_the_socket_listens_without_blocking_and_there_is_no_other_file(folder: str, path: str) -> None:
    with bind_unix_socket(path, 0o600, "") as listening:
        assert connects(path)
        assert not listening.getblocking()
        assert not listening.get_inheritable()
        assert os.listdir(folder) == ["s"]


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o000])
@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
def test_the_mode_is_the_configured_one_whatever_the_umask(path: str, mode: int, umask: int) -> None:
    before = os.umask(umask)
    try:
        bind_unix_socket(path, mode, "").close()
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert mode_of(path) == mode


def test_the_socket_is_at_no_moment_more_open_than_configured(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the modes when the file has just been made, and when connections become possible."""
    seen: list[int] = []

    class Watched(socket.socket):
        def look(self) -> None:
            seen.extend(mode_of(str(entry)) for entry in pathlib.Path(path).parent.iterdir())

        def bind(self, address: object, /) -> None:
            super().bind(address)  # type: ignore[arg-type]  # the type of the address has no name
            self.look()

        def listen(self, backlog: int = 0, /) -> None:
            self.look()
            super().listen(backlog)

    monkeypatch.setattr(socket, "socket", Watched)
    before = os.umask(0)
    try:
        bind_unix_socket(path, 0o640, "").close()
    finally:
        os.umask(before)
    assert seen == [0o640, 0o640]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to any group")
def test_the_group_is_the_configured_one_by_name_or_number(path: str) -> None:
    named = next(entry for entry in grp.getgrall() if entry.gr_gid not in (0, os.getegid()))
    for group, gid in ((named.gr_name, named.gr_gid), ("54321", 54_321)):
        bind_unix_socket(path, 0o660, group).close()
        assert (os.lstat(path).st_gid, mode_of(path)) == (gid, 0o660)


def test_without_a_configured_group_the_socket_has_the_daemons_own(path: str) -> None:
    bind_unix_socket(path, 0o660, "").close()
    assert os.lstat(path).st_gid == os.getegid()


@pytest.mark.parametrize("group", ["no such group", "4294967295", "99999999999999999999", "²"])
def test_an_unknown_group_is_a_configuration_error(path: str, group: str) -> None:
    assert refusal(path, 78, group=group) == f"no such group: {group}; see listen.socket_group"


def test_a_group_that_the_daemon_is_not_a_member_of_is_a_configuration_error(path: str, python: Python) -> None:
    code = """
import os, sys
from kvd.service.unix_socket import StartError, bind_unix_socket
if os.getuid() == 0:
    os.chown(os.path.dirname(sys.argv[1]), 12345, 12345)
    os.setgroups([]); os.setgid(12345); os.setuid(12345)
try:
    bind_unix_socket(sys.argv[1], 0o660, "54321")
except StartError as error:
    print(error.exit_code, error.text)
print(os.listdir(os.path.dirname(sys.argv[1])))
"""
    assert python(code, path).stdout.decode().splitlines() == [
        f"78 cannot give {path} to the group 54321: Operation not permitted; the daemon must be a member, or root",
        "[]",
    ]


# ---------------------------------------------------------------------- what exists at the path


def test_a_stale_socket_is_replaced(path: str) -> None:
    old = leave_stale_socket(path)
    with bind_unix_socket(path, 0o600, ""):
        assert connects(path)
        assert socket_inode(path) != old


def test_a_stale_datagram_socket_is_replaced(path: str) -> None:
    leave_stale_socket(path, socket.SOCK_DGRAM)
    with bind_unix_socket(path, 0o600, ""):
        assert connects(path)


def test_there_is_no_moment_without_a_socket_while_it_is_replaced(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_stale_socket(path)
    seen: list[bool] = []
    rename = os.rename

    def watched(source: str, target: str) -> None:
        seen.append(os.path.exists(path) and connects(source))
        rename(source, target)

    monkeypatch.setattr(os, "rename", watched)
    bind_unix_socket(path, 0o600, "").close()
    assert seen == [True]


def test_a_temporary_socket_of_a_killed_process_is_replaced_and_removed(folder: str, path: str) -> None:
    leave_stale_socket(f"{path}.new")
    bind_unix_socket(path, 0o600, "").close()
    assert os.listdir(folder) == ["s"]


@pytest.mark.parametrize("kind", ["file", "directory", "symbolic link"])
def test_a_file_under_the_temporary_name_that_is_not_a_socket_is_left_alone(path: str, kind: str) -> None:
    other = pathlib.Path(f"{path}.new")
    if kind == "file":
        other.write_text("precious", encoding="ascii")
    elif kind == "directory":
        other.mkdir()
    else:
        other.symlink_to("precious")
    assert refusal(path, 74) == f"cannot listen at {path}: {path}.new: Address already in use"


def test_a_socket_of_a_live_process_is_left_alone(path: str) -> None:
    with bind_unix_socket(path, 0o600, ""):
        inode = socket_inode(path)
        assert "another process already listens at" in refusal(path, 75)
        assert socket_inode(path) == inode


def test_a_socket_with_a_full_backlog_is_left_alone(path: str) -> None:
    """A connection would wait for ever, which shows that a process listens."""
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
        busy.bind(path)
        busy.listen(0)
        first.connect(path)
        assert "another process already listens at" in refusal(path, 75)


def test_a_datagram_socket_of_a_live_process_is_left_alone(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(path)
        assert "another process already listens at" in refusal(path, 75)


def test_a_socket_that_cannot_be_probed_is_left_alone(path: str, python: Python) -> None:
    code = """
import os, socket, sys
from kvd.service.unix_socket import StartError, bind_unix_socket
listening = bind_unix_socket(sys.argv[1], 0, "")
if os.getuid() == 0:
    os.chown(os.path.dirname(sys.argv[1]), 12345, 12345)
    os.setgroups([]); os.setgid(12345); os.setuid(12345)
try:
    bind_unix_socket(sys.argv[1], 0o600, "")
except StartError as error:
    print(error.exit_code, error.text)
"""
    text = f"74 cannot tell whether a process listens at {path}: Permission denied\n"
    assert python(code, path).stdout.decode() == text


def test_a_file_that_is_not_a_socket_is_left_alone(folder: str, path: str) -> None:
    pathlib.Path(path).write_text("precious", encoding="ascii")
    assert refusal(path, 78) == f"{path} is not a socket; move it away or choose another path"
    assert pathlib.Path(path).read_text(encoding="ascii") == "precious"
    os.mkdir(f"{folder}/directory")
    refusal(f"{folder}/directory", 78)
    os.mkfifo(f"{folder}/fifo")
    refusal(f"{folder}/fifo", 78)


@pytest.mark.parametrize("target", ["nothing", "stale", "alive"])
def test_a_symbolic_link_is_left_alone(folder: str, path: str, target: str) -> None:
    os.symlink(f"{folder}/{target}", path)
    leave_stale_socket(f"{folder}/stale")
    with bind_unix_socket(f"{folder}/alive", 0o600, ""):
        assert "is not a socket" in refusal(path, 78)


# ---------------------------------------------------------------------- paths and directories


def test_a_path_is_too_long_with_its_temporary_suffix(folder: str) -> None:
    fits = f"{folder}/{'a' * (MAX_PATH_BYTES - len(folder) - 1 - len('.new'))}"
    bind_unix_socket(fits, 0o600, "").close()
    assert f"has {MAX_PATH_BYTES + 1} bytes, of {MAX_PATH_BYTES} allowed" in refusal(fits + "a", 78)


def test_the_length_of_a_path_counts_in_bytes(folder: str) -> None:
    name = "é" * ((MAX_PATH_BYTES - len(folder) - 1 - len(".new")) // 2)
    bind_unix_socket(f"{folder}/{name}", 0o600, "").close()
    refusal(f"{folder}/{name}é", 78)


def test_a_missing_directory_is_an_io_error(folder: str) -> None:
    with pytest.raises(
        StartError, match=re.escape(f"cannot listen at {folder}/no/s: {folder}/no/s.new: No such file")
    ) as failure:
        bind_unix_socket(f"{folder}/no/s", 0o600, "")
    assert failure.value.exit_code == 74


def test_missing_directories_are_made_for_their_owner_alone(folder: str) -> None:
    before = os.umask(0)
    try:
        make_directory(f"{folder}/a/b/s")
        assert os.umask(0) == 0
    finally:
        os.umask(before)
    assert [mode_of(f"{folder}/a"), mode_of(f"{folder}/a/b")] == [0o700, 0o700]
    assert os.listdir(f"{folder}/a/b") == []


def test_directories_for_a_shared_socket_let_other_users_through(folder: str) -> None:
    make_directory(f"{folder}/a/b/s", 0o755)
    assert [mode_of(f"{folder}/a"), mode_of(f"{folder}/a/b")] == [0o755, 0o755]


def test_an_existing_directory_keeps_its_mode(folder: str) -> None:
    os.chmod(folder, 0o755)  # noqa: S103 - a directory of the test's own
    make_directory(f"{folder}/s")
    assert mode_of(folder) == 0o755


def test_a_file_in_the_directorys_place_is_an_io_error(path: str) -> None:
    pathlib.Path(path).write_text("", encoding="ascii")
    with pytest.raises(StartError, match=re.escape(f"cannot make the directory {path}: File exists")) as failure:
        make_directory(f"{path}/s")
    assert failure.value.exit_code == 74


# ---------------------------------------------------------------------- removal and credentials


def test_removal_removes_our_own_socket(path: str) -> None:
    with bind_unix_socket(path, 0o600, ""):
        inode = socket_inode(path)
        assert inode is not None
        remove_socket(path, inode)
    assert not os.path.exists(path)
    remove_socket(path, inode)  # a second removal is not an error


def test_removal_leaves_a_socket_that_replaced_ours(path: str) -> None:
    with bind_unix_socket(path, 0o600, ""):
        inode = socket_inode(path)
        assert inode is not None
        os.rename(path, f"{path}.old")  # so that the other socket cannot get its inode
        with bind_unix_socket(path, 0o600, ""):
            remove_socket(path, inode)
            assert connects(path)


def test_clients_see_the_pid_of_the_process_that_bound_it(path: str) -> None:
    with bind_unix_socket(path, 0o600, ""), socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        pid, _, _ = struct.unpack("iII", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        assert pid == os.getpid()
