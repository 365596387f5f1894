"""The files that ``kv backup``, ``kv export -o`` and ``kv metrics --textfile`` write, also in shared directories.

Another user, here uid 12345, has prepared the name that root writes to.
"""

import fcntl
import json
import os
import pathlib
import signal
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.harness.kv_command import Kv
from tests.harness.processes import KV, Process
from tests.harness.waiting import DEADLINE_S, eventually

OTHER_UID = 12345
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes files that belong to another user")
WRITERS = {
    "backup": lambda path: ["backup", path],
    "export": lambda path: ["export", "-o", path],
    "textfile": lambda path: ["metrics", "--textfile", path],
}
Arguments = Callable[[str], list[str]]


@pytest.fixture(scope="module")
def one(shared_kv: Kv) -> Kv:
    shared_kv.ok("set", "secret=1")
    return shared_kv


@pytest.fixture
def shared_folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """A directory that all users can write, as /tmp."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


def belongs_to_another(path: pathlib.Path) -> None:
    os.chown(path, OTHER_UID, OTHER_UID, follow_symlinks=False)


def mode_of(path: pathlib.Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def is_export(path: pathlib.Path) -> bool:
    return json.loads(path.read_text()) == {"key": "secret", "value": "1"}


@needs_root
@pytest.mark.parametrize("mode", [0o4777, 0o2755, 0o666, 0o644])
@pytest.mark.parametrize("command", ["backup", "export"])
def test_no_permission_is_taken_over_from_a_file_of_another_user(
    one: Kv, shared_folder: pathlib.Path, command: str, mode: int
) -> None:
    file = shared_folder / "x"
    file.write_bytes(b"")
    belongs_to_another(file)
    file.chmod(mode)
    one.ok(*WRITERS[command](str(file)), "-q")
    assert (file.stat().st_uid, mode_of(file)) == (0, 0o600)


@pytest.mark.parametrize("mode", [0o4777, 0o2755, 0o1644])
def test_of_a_file_of_ones_own_only_the_permissions_are_kept(one: Kv, tmp_path: pathlib.Path, mode: int) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"")
    file.chmod(mode)
    one.ok("export", "-o", str(file))
    assert mode_of(file) == mode & 0o777


def test_no_permission_is_taken_over_from_a_file_with_a_second_name(one: Kv, tmp_path: pathlib.Path) -> None:
    """Another user can give any file a second name, where the kernel allows it."""
    (tmp_path / "public").write_bytes(b"hello")
    (tmp_path / "public").chmod(0o644)
    os.link(tmp_path / "public", tmp_path / "x")
    one.ok("export", "-o", str(tmp_path / "x"))
    assert mode_of(tmp_path / "x") == 0o600
    assert (tmp_path / "public").read_bytes() == b"hello"


def test_no_permission_is_taken_over_where_others_can_rename(one: Kv, tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    (folder / "x").write_bytes(b"")
    (folder / "x").chmod(0o644)
    one.ok("export", "-o", str(folder / "x"))
    assert mode_of(folder / "x") == 0o600


def test_the_file_of_metrics_is_readable_for_all_only_when_it_is_written(one: Kv, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "kvd.prom"
    file.write_bytes(b"")
    file.chmod(0o4777)
    one.ok("metrics", "--textfile", str(file))
    assert mode_of(file) == 0o644


@needs_root
@pytest.mark.parametrize("arguments", WRITERS.values(), ids=WRITERS)
def test_a_link_of_another_user_is_not_followed(one: Kv, shared_folder: pathlib.Path, arguments: Arguments) -> None:
    victim = shared_folder.parent / "victim"
    victim.write_bytes(b"precious")
    link = shared_folder / "x.prom"
    link.symlink_to(victim)
    belongs_to_another(link)
    error = one.fails(74, *arguments(str(link)))
    assert f"x.prom is a link of uid {OTHER_UID} in a directory that other users can write" in error
    assert victim.read_bytes() == b"precious"
    assert link.is_symlink()


@needs_root
def test_a_link_of_another_user_to_a_directory_is_not_followed(one: Kv, shared_folder: pathlib.Path) -> None:
    (shared_folder.parent / "private").mkdir()
    (shared_folder / "d").symlink_to(shared_folder.parent / "private")
    belongs_to_another(shared_folder / "d")
    one.fails(74, "export", "-o", str(shared_folder / "d" / "x"))
    assert list((shared_folder.parent / "private").iterdir()) == []


@needs_root
def test_a_link_in_the_own_directory_of_another_user_is_not_followed(one: Kv, tmp_path: pathlib.Path) -> None:
    (tmp_path / "theirs").mkdir(mode=0o755)
    belongs_to_another(tmp_path / "theirs")
    (tmp_path / "theirs" / "x").symlink_to(tmp_path / "victim")
    belongs_to_another(tmp_path / "theirs" / "x")
    one.fails(74, "export", "-o", str(tmp_path / "theirs" / "x"))
    assert not (tmp_path / "victim").exists()


@needs_root
def test_a_pipe_of_another_user_is_not_written_to(one: Kv, shared_folder: pathlib.Path) -> None:
    os.mkfifo(shared_folder / "x")
    belongs_to_another(shared_folder / "x")
    reader = os.open(shared_folder / "x", os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert "is a special file of uid" in one.fails(74, "export", "-o", str(shared_folder / "x"))
        assert os.read(reader, 100) == b""
    finally:
        os.close(reader)


def test_a_link_of_ones_own_is_followed(one: Kv, shared_folder: pathlib.Path) -> None:
    """The file that it names is replaced, also over several links and in another directory."""
    (shared_folder.parent / "real").mkdir()
    (shared_folder.parent / "folder").symlink_to("real")
    (shared_folder / "second").symlink_to("../folder/file")
    (shared_folder / "first").symlink_to(shared_folder / "second")
    one.ok("export", "-o", str(shared_folder / "first"))
    assert is_export(shared_folder.parent / "real" / "file")
    assert (shared_folder / "first").is_symlink()
    assert (shared_folder / "second").is_symlink()
    (shared_folder / "loop").symlink_to("loop")
    assert "symbolic links" in one.fails(74, "export", "-o", str(shared_folder / "loop"))


def test_a_path_that_is_no_file_is_refused(one: Kv, tmp_path: pathlib.Path) -> None:
    for path in (str(tmp_path), f"{tmp_path}/x/", ".", "..", ""):
        assert "cannot write" in one.fails(74, "export", "-o", path)
    (tmp_path / "file").write_bytes(b"")
    assert "Not a directory" in one.fails(74, "export", "-o", str(tmp_path / "file" / "x"))


# ---------------------------------------------------------------------- pipes and descriptors


@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_a_name_of_a_descriptor_means_the_descriptor(one: Kv, path: str, tmp_path: pathlib.Path) -> None:
    assert one.ok("export", "-o", path) == one.ok("export")
    file = tmp_path / "x"
    file.write_bytes(b"before\n")
    with file.open("ab") as out:
        assert one.start("export", "-o", path, stdout=out).wait(DEADLINE_S) == 0
    assert file.read_text() == "before\n" + one.ok("export")


def test_the_output_goes_through_a_process_substitution(one: Kv) -> None:
    command = ["bash", "-c", '"$@" -o >(tr a-z A-Z); wait $!', "bash", *KV, "export"]
    done = subprocess.run(  # noqa: S603 - bash and the command under test
        command, capture_output=True, env=one.environment(), timeout=DEADLINE_S, check=True
    )
    assert done.stdout == b'{"KEY": "SECRET", "VALUE": "1"}\n'


def test_a_pipe_of_ones_own_is_written_to(one: Kv, shared_folder: pathlib.Path) -> None:
    os.mkfifo(shared_folder / "pipe")
    process = one.start("export", "-o", str(shared_folder / "pipe"))
    assert (shared_folder / "pipe").read_bytes() == b'{"key": "secret", "value": "1"}\n'
    assert process.wait(DEADLINE_S) == 0


# ---------------------------------------------------------------------- unfinished files


@pytest.fixture
def held_up(kv: Kv, tmp_path: pathlib.Path, request: pytest.FixtureRequest) -> Iterator[Process]:
    """An export into ``tmp_path/"out"`` that waits for its daemon, which is stopped."""
    folder = tmp_path / "out"
    folder.mkdir()
    daemon = int(json.loads(kv.ok("status", "--json"))["pid"])
    os.kill(daemon, signal.SIGSTOP)
    process = kv.start("export", "--timeout", "0", "-o", str(folder / "x"), *getattr(request, "param", []))
    try:
        eventually(lambda: list(folder.iterdir()), "for the unfinished file")
        yield process
    finally:
        process.kill()
        process.wait(DEADLINE_S)
        os.kill(daemon, signal.SIGCONT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_no_unfinished_file(held_up: Process, tmp_path: pathlib.Path, number: signal.Signals) -> None:
    held_up.send_signal(number)
    assert held_up.wait(DEADLINE_S) == (130 if number == signal.SIGINT else -number)
    assert list((tmp_path / "out").iterdir()) == []


def test_the_next_command_removes_what_a_kill_has_left(held_up: Process, one: Kv, tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "out"
    (unfinished,) = folder.iterdir()
    assert mode_of(unfinished) == 0o600
    one.ok("export", "-o", str(folder / "y"))
    assert {path.name for path in folder.iterdir()} == {"y", unfinished.name}, "it is in use"
    held_up.kill()
    held_up.wait(DEADLINE_S)
    one.ok("export", "-o", str(folder / "z"))
    assert {path.name for path in folder.iterdir()} == {"y", "z"}


def test_a_file_that_another_program_has_locked_is_not_taken_for_abandoned(one: Kv, tmp_path: pathlib.Path) -> None:
    file = tmp_path / ".kv-0123456789abcdef.tmp"
    with file.open("wb") as locked:
        fcntl.flock(locked, fcntl.LOCK_EX)
        one.ok("export", "-o", str(tmp_path / "x"))
        assert file.exists()
    (tmp_path / "x.1.tmp").write_bytes(b"a file of the user's own")
    one.ok("export", "-o", str(tmp_path / "x"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "x.1.tmp"]


def test_names_may_be_as_long_as_the_file_system_allows(one: Kv, tmp_path: pathlib.Path) -> None:
    file = tmp_path / ("x" * 255)
    one.ok("export", "-o", str(file))
    assert is_export(file)


def test_many_commands_write_one_file_at_once(one: Kv, tmp_path: pathlib.Path) -> None:
    """None is in the way of another, whatever their process ids are."""
    results: list[int] = []

    def write() -> None:
        results.append(one("export", "-o", str(tmp_path / "x")).returncode)

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert results == [0] * 8
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert is_export(tmp_path / "x")


@needs_root
def test_a_file_that_is_a_mount_point_cannot_be_replaced_and_the_error_says_so(one: Kv, tmp_path: pathlib.Path) -> None:
    (tmp_path / "x").write_bytes(b"before")
    (tmp_path / "source").write_bytes(b"before")
    script = 'mount --bind "$1/source" "$1/x" && shift && exec "$@"'
    done = subprocess.run(  # noqa: S603 - our own command
        ["unshare", "--mount", "sh", "-c", script, "sh", str(tmp_path), *KV, "export", "-o", str(tmp_path / "x")],  # noqa: S607
        capture_output=True, env=one.environment(), timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    if b"permission denied" in done.stderr.lower() or b"not permitted" in done.stderr.lower():
        pytest.skip("no mount namespace can be made here")
    assert done.returncode == 74
    assert b"because it is a mount point; name a file in a directory" in done.stderr
    assert (tmp_path / "source").read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "x"]
