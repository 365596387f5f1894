"""What other users may have put in the daemon's way: it is neither waited for, nor taken over, nor changed."""

import os
import pathlib
import signal
import socket
import stat
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

import kv
from kv.settings import ClientSettings
from kvd.journal import names
from kvd.service.errors import StartError
from kvd.service.restart_fence import RestartFence
from kvd.service.trusted_files import make_directories
from kvd.service.unix_socket import bind_unix_socket
from tests.harness.processes import run_python
from tests.harness.waiting import DEADLINE_S

if TYPE_CHECKING:
    from tests.harness.real_daemon import RealDaemon

OTHER = 65533
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root, to be another user")
TOKEN = "a-token-of-more-than-sixteen"  # noqa: S105 - of no real daemon


def mode_of(path: str | pathlib.Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


# ---------------------------------------------------------------------- the socket


def test_the_mode_never_goes_to_a_file_that_took_the_sockets_temporary_name(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user exchanges the socket for a link as soon as it is bound."""
    precious = tmp_path / "precious"
    precious.touch(0o600)
    path = str(tmp_path / "s")

    class Exchanged(socket.socket):
        def bind(self, address: object, /) -> None:
            super().bind(address)  # type: ignore[arg-type]  # the type of the address has no name
            os.unlink(f"{path}.new")
            os.symlink(precious, f"{path}.new")

    monkeypatch.setattr(socket, "socket", Exchanged)
    for group in ("", str(os.getgid())):
        with suppress(StartError):  # whether it notices is not the claim
            bind_unix_socket(path, 0o666, group).close()
        (tmp_path / "s").unlink(missing_ok=True)
        (tmp_path / "s.new").unlink(missing_ok=True)
    assert mode_of(precious) == 0o600


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o775])
def test_a_directory_that_others_can_write_is_refused(kvd: "RealDaemon", mode: int) -> None:
    os.chmod(kvd.folder, mode)
    assert f"other users can exchange what is in {kvd.folder}; run: chmod go-w" in kvd.refused(78)


@needs_root
def test_a_directory_of_another_user_is_refused(kvd: "RealDaemon") -> None:
    os.chown(kvd.folder, OTHER, OTHER)
    assert f"{kvd.folder} belongs to uid {OTHER}, who can exchange what is in it" in kvd.refused(78)


def test_a_directory_with_the_sticky_bit_is_not_refused(kvd: "RealDaemon") -> None:
    os.chmod(kvd.folder, 0o1777)  # noqa: S103 - the claim is about it
    kvd.serve()


def test_a_directory_of_the_http_socket_that_others_can_write_is_refused(kvd: "RealDaemon") -> None:
    pytest.importorskip("httptools")
    (kvd.folder / "open").mkdir()
    (kvd.folder / "open").chmod(0o777)
    error = kvd.run("--http", f"{kvd.folder}/open/h")
    assert error.returncode == 78
    assert b"other users can exchange what is in" in error.stderr


@needs_root
def test_a_lock_file_of_another_user_is_refused(kvd: "RealDaemon") -> None:
    os.chmod(kvd.folder, 0o1777)  # noqa: S103 - the claim is about it
    pathlib.Path(kvd.lock_path).touch()
    os.chown(kvd.lock_path, OTHER, OTHER)
    assert f"belongs to uid {OTHER}" in kvd.refused(74)


# ---------------------------------------------------------------------- the restart fence


def fence_in_time(path: str) -> str:
    """Look at the fence and write it, in a process of its own that must not hang."""
    code = """
import sys
from kvd.service.restart_fence import RestartFence
fence = RestartFence(sys.argv[1])
print(fence.left_s > 0)
try:
    fence.write()
    print("written")
except OSError as error:
    print("refused")
"""
    return run_python(code, path).stdout.decode()


@pytest.mark.parametrize("kind", ["fifo", "link"])
def test_what_is_no_file_of_ours_in_the_fences_place_is_neither_waited_for_nor_written(
    tmp_path: pathlib.Path, kind: str
) -> None:
    path = str(tmp_path / "s")
    (tmp_path / "precious").write_text("precious")
    if kind == "fifo":
        os.mkfifo(f"{path}.dirty")
    else:
        os.symlink(tmp_path / "precious", f"{path}.dirty")
    assert fence_in_time(path) == "False\nrefused\n"
    assert (tmp_path / "precious").read_text() == "precious"


@needs_root
def test_a_file_of_another_user_in_the_fences_place_is_not_written(tmp_path: pathlib.Path) -> None:
    dirty = tmp_path / "s.dirty"
    dirty.write_text("theirs")
    os.chown(dirty, OTHER, OTHER)
    assert fence_in_time(str(tmp_path / "s")) == "False\nrefused\n"
    assert dirty.read_text() == "theirs"


def test_our_own_file_is_still_a_fence(tmp_path: pathlib.Path) -> None:
    RestartFence(str(tmp_path / "s")).write()
    assert RestartFence(str(tmp_path / "s")).left_s > 0


# ---------------------------------------------------------------------- the data directory


@pytest.mark.parametrize("present", [["thesis.tmp", "lock"], ["thesis.tmp"], ["lock"], ["0000000001.log.bak"]])
def test_a_directory_that_is_not_kvds_is_refused_before_anything_in_it_is_touched(
    kvd: "RealDaemon", present: list[str]
) -> None:
    data = kvd.folder / "data"
    data.mkdir(0o700)
    for name in present:
        (data / name).write_text("precious, and no pid")
    error = kvd.refused(78, "--data-dir", str(data))
    assert f"data directory {data}: it is not kvd's: it holds {min(present)} and no file of kvd" in error
    assert sorted(os.listdir(data)) == sorted(present)
    assert {(data / name).read_text() for name in present} == {"precious, and no pid"}


def test_only_unfinished_segments_and_checkpoints_are_removed(kvd: "RealDaemon") -> None:
    data = kvd.folder / "data"
    assert kvd.stop(kvd.serve("--data-dir", str(data))) == 0
    ours, others = ("0000000009.checkpoint.tmp", "0000000008.log.tmp"), ("notes.tmp", "1.log.tmp", "000000000a.log.tmp")
    for name in (*ours, *others):
        (data / name).write_text("x")
    assert kvd.stop(kvd.serve("--data-dir", str(data))) == 0
    assert set(others) == {name for name in os.listdir(data) if name.endswith(".tmp")}


def test_the_unfinished_names_are_those_of_segments_and_checkpoints() -> None:
    assert names.is_unfinished("0000000001.log.tmp")
    assert not names.is_unfinished("0000000001.tmp")
    assert not names.is_unfinished("lock.tmp")


@pytest.mark.parametrize("what", ["an empty lock file", "a pid", "lost+found"])
def test_a_directory_where_a_daemon_was_killed_at_once_or_the_root_of_a_volume_is_taken(
    kvd: "RealDaemon", what: str
) -> None:
    data = kvd.folder / "data"
    data.mkdir(0o700)
    if what == "lost+found":
        (data / what).mkdir()
    else:
        (data / "lock").write_text("123\n" * (what == "a pid"))
    kvd.serve("--data-dir", str(data))


def test_a_backup_is_restored_into_the_root_of_a_volume(kvd: "RealDaemon") -> None:
    kvd.serve()
    kvd.ask(["set", {"a": b"1"}])
    assert kvd.kv("backup", f"{kvd.folder}/backup").returncode == 0
    (kvd.folder / "new").mkdir(0o700)
    (kvd.folder / "new/lost+found").mkdir()
    assert kvd.kv("restore", f"{kvd.folder}/backup", f"{kvd.folder}/new").returncode == 0


def test_the_parents_of_a_data_directory_are_private_under_any_umask(kvd: "RealDaemon") -> None:
    kvd.serve("--data-dir", f"{kvd.folder}/a/b/data", umask=0)
    assert [mode_of(kvd.folder / each) for each in ("a", "a/b", "a/b/data")] == [0o700] * 3


def test_the_parents_of_a_restored_directory_are_private_under_any_umask(kvd: "RealDaemon") -> None:
    kvd.serve()
    assert kvd.kv("backup", f"{kvd.folder}/backup").returncode == 0
    command = [*kvd.kv.command, "restore", f"{kvd.folder}/backup", f"{kvd.folder}/a/b/new"]
    subprocess.run(command, env=kvd.environment(), umask=0, check=True, timeout=DEADLINE_S, capture_output=True)  # noqa: S603 - our own command
    assert [mode_of(kvd.folder / each) for each in ("a", "a/b", "a/b/new")] == [0o700] * 3


def test_made_directories_leave_the_umask_as_it_was(tmp_path: pathlib.Path) -> None:
    before = os.umask(0o022)
    try:
        make_directories(str(tmp_path / "a/b"))
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


def test_without_the_lock_file_a_second_daemon_is_refused_all_the_same(kvd: "RealDaemon") -> None:
    data = f"{kvd.folder}/data"
    kvd.serve("--data-dir", data)
    os.unlink(f"{data}/lock")
    second = kvd.run("--data-dir", data, "--socket", f"{kvd.folder}/s2")
    assert second.returncode == 75, second.stderr
    assert b"already running" in second.stderr
    check = kvd.kv("check", data)
    assert check.returncode == 75


def test_without_the_lock_file_a_second_daemon_is_refused_by_a_detached_one_too(kvd: "RealDaemon") -> None:
    data = f"{kvd.folder}/data"
    kvd.detach("--data-dir", data)
    os.unlink(f"{data}/lock")
    assert kvd.run("--data-dir", data, "--socket", f"{kvd.folder}/s2").returncode == 75


@pytest.mark.parametrize("how", ["removed", "replaced", "moved with its directory"])
def test_a_daemon_whose_log_file_is_not_in_its_directory_any_more_fails_loudly(kvd: "RealDaemon", how: str) -> None:
    data = kvd.folder / "data"
    process = kvd.serve("--data-dir", str(data))
    kvd.ask(["set", {"a": b"1"}])
    tail = data / max(name for name in os.listdir(data) if name.endswith(".log"))
    if how == "removed":
        tail.unlink()
    elif how == "replaced":
        tail.rename(data / "other")
        tail.write_bytes((data / "other").read_bytes())
    else:
        data.rename(kvd.folder / "elsewhere")

    def ends() -> bool:
        try:
            kvd.ask(["set", {"a": b"2"}])
        except (EOFError, OSError):
            pass
        return process.poll() is not None

    kvd.eventually(ends)
    assert process.returncode == 74
    assert "CRITICAL the commit log cannot be written: " in kvd.log()
    assert "removed or replaced" in kvd.log()


# ---------------------------------------------------------------------- configuration, token, certificate, log


def tcp(kvd: "RealDaemon", token_file: str) -> tuple[str, ...]:
    return ("--tcp", "127.0.0.1:0", "--token-file", token_file)


@pytest.mark.parametrize("mode", [0o666, 0o620])
def test_a_token_file_that_others_can_write_is_refused(kvd: "RealDaemon", mode: int) -> None:
    path = kvd.write_token()
    os.chmod(path, mode)
    assert "users other than its owner can write it" in kvd.refused(78, *tcp(kvd, path))


@needs_root
def test_a_token_file_of_another_user_is_refused(kvd: "RealDaemon") -> None:
    path = kvd.write_token()
    os.chown(path, OTHER, OTHER)
    assert f"belongs to uid {OTHER}" in kvd.refused(78, *tcp(kvd, path))


@needs_root
def test_a_configuration_file_of_another_user_is_refused(kvd: "RealDaemon") -> None:
    path = kvd.configure("")
    os.chown(path, OTHER, OTHER)
    assert f"belongs to uid {OTHER}" in kvd.refused(78, "--config", path)


def test_a_token_file_that_all_can_read_is_warned_of(kvd: "RealDaemon") -> None:
    path = kvd.write_token()
    os.chmod(path, 0o644)
    kvd.serve(*tcp(kvd, path))
    kvd.eventually(lambda: f"WARNING listen.token_file: every user can read {path}; run: chmod o-r {path}" in kvd.log())


def test_a_byte_order_mark_does_not_belong_to_a_token_or_a_configuration(kvd: "RealDaemon") -> None:
    path = kvd.write_token(f"\ufeff{TOKEN}\n")
    config = kvd.configure('\ufefflog.level = "info"\n')
    kvd.serve(*tcp(kvd, path), "--config", config)
    address = next(each for each in kvd.status()["listening"].split() if each.startswith("tcp://"))
    for token_file in (path, kvd.write_token(TOKEN)):
        with kv.connect(address, token_file=token_file, timeout=DEADLINE_S) as db:
            db.set("a", b"1")


def test_a_fifo_for_a_token_file_is_refused_at_once_by_a_start_and_by_a_reload(kvd: "RealDaemon") -> None:
    path = kvd.write_token()
    process = kvd.serve(*tcp(kvd, path))
    os.unlink(path)
    os.mkfifo(path)
    assert "not a regular file" in kvd.ask(["reload"])[0]["message"]
    assert kvd.ask(["ping"]) == [True]
    assert kvd.stop(process) == 0
    assert "not a regular file" in kvd.refused(78, *tcp(kvd, path))


@pytest.mark.parametrize("option", ["tls_certificate", "tls_key", "tls_client_ca"])
def test_a_fifo_for_a_certificate_is_refused_at_once(kvd: "RealDaemon", option: str) -> None:
    files = make_certificate(kvd.folder / "tls")
    os.mkfifo(kvd.folder / "fifo")
    files |= {option: str(kvd.folder / "fifo")}
    text = "".join(f'listen.{name} = "{path}"\n' for name, path in files.items())
    done = kvd.run("--config", kvd.configure(text))
    assert done.returncode == 78
    assert b"not a regular file" in done.stderr


def make_certificate(folder: pathlib.Path, *dates: str) -> dict[str, str]:
    """A certificate for 127.0.0.1 by itself, and its key, with openssl."""
    from tests.harness.programs import require

    require("openssl")
    folder.mkdir(exist_ok=True)
    files = {"tls_certificate": str(folder / "cert.pem"), "tls_key": str(folder / "key.pem")}
    command = [
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=kvd",
        "-keyout", files["tls_key"], "-out", files["tls_certificate"], "-days", "30",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=DEADLINE_S)  # noqa: S603 - our own command
    return files


def make_expired(folder: pathlib.Path) -> dict[str, str]:
    """As ``make_certificate``, but its time is over."""
    files = make_certificate(folder)
    request = ["openssl", "req", "-new", "-key", files["tls_key"], "-subj", "/CN=kvd", "-out", str(folder / "csr.pem")]
    subprocess.run(request, check=True, capture_output=True, timeout=DEADLINE_S)  # noqa: S603 - our own command
    for name, content in {"index": "", "serial": "01\n", "ca.cnf": CA_CONFIGURATION}.items():
        (folder / name).write_text(content)
    sign = [
        "openssl", "ca", "-batch", "-selfsign", "-config", "ca.cnf", "-keyfile", "key.pem", "-in", "csr.pem", "-out",
        "cert.pem", "-startdate", "20200101000000Z", "-enddate", "20200102000000Z", "-notext",
    ]  # fmt: skip
    subprocess.run(sign, check=True, capture_output=True, timeout=DEADLINE_S, cwd=folder)  # noqa: S603 - our own command
    return files


CA_CONFIGURATION = """
[ca]
default_ca = here
[here]
database = index
serial = serial
new_certs_dir = .
default_md = sha256
policy = any
[any]
commonName = supplied
"""


def with_tls(kvd: "RealDaemon", files: dict[str, str]) -> tuple[str, ...]:
    text = "".join(f'listen.{name} = "{path}"\n' for name, path in files.items())
    return (*tcp(kvd, kvd.write_token()), "--config", kvd.configure(text))


def test_a_key_that_others_can_write_is_refused(kvd: "RealDaemon") -> None:
    files = make_certificate(kvd.folder / "tls")
    os.chmod(files["tls_key"], 0o666)  # noqa: S103 - the claim is about it
    done = kvd.run(*with_tls(kvd, files))
    assert done.returncode == 78
    assert b"users other than its owner can write it" in done.stderr


def test_an_expired_certificate_is_warned_of(kvd: "RealDaemon") -> None:
    files = make_expired(kvd.folder / "tls")
    kvd.serve(*with_tls(kvd, files))
    text = f"WARNING listen.tls_certificate: {files['tls_certificate']} has expired"
    kvd.eventually(lambda: text in kvd.log())


def test_a_certificate_of_today_is_not_warned_of(kvd: "RealDaemon") -> None:
    process = kvd.serve(*with_tls(kvd, make_certificate(kvd.folder / "tls")))
    assert kvd.stop(process) == 0
    assert "WARNING" not in kvd.log()


def test_a_reload_says_that_another_certificate_is_in_use(kvd: "RealDaemon") -> None:
    kvd.serve(*with_tls(kvd, make_certificate(kvd.folder / "tls")))
    assert kvd.ask(["reload"]) == [[]]
    make_certificate(kvd.folder / "tls")
    assert kvd.ask(["reload"]) == [["listen.tls_certificate: other certificates, for new connections"]]


@needs_root
def test_a_log_file_of_another_user_is_refused(kvd: "RealDaemon") -> None:
    pathlib.Path(kvd.log_path).touch(0o666)
    os.chown(kvd.log_path, OTHER, OTHER)
    assert f"it belongs to uid {OTHER}" in kvd.refused(74)


def test_a_link_to_a_log_is_not_followed_where_others_can_make_links(kvd: "RealDaemon") -> None:
    os.chmod(kvd.folder, 0o777)  # noqa: S103 - the claim is about it
    (kvd.folder / "token").touch()
    os.symlink(kvd.folder / "token", kvd.log_path)
    assert "cannot write the log" in kvd.refused(74)
    assert (kvd.folder / "token").read_text() == ""


def test_a_client_waits_for_its_token_no_longer_than_for_a_reply(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "token")
    with pytest.raises(kv.KvdError, match="cannot read the token file"):
        ClientSettings("tcp://127.0.0.1:1", token_file=str(tmp_path / "token"), timeout=0.01).token_for("tcp://a:1")


def test_a_client_reads_its_token_from_a_pipe(kvd: "RealDaemon") -> None:
    kvd.serve(*tcp(kvd, kvd.write_token()))
    address = next(each for each in kvd.status()["listening"].split() if each.startswith("tcp://"))
    reading, writing = os.pipe()
    os.write(writing, kvd.token.encode())
    os.close(writing)
    with kv.connect(address, token_file=f"/dev/fd/{reading}", timeout=DEADLINE_S) as db:
        db.set("a", b"1")
    os.close(reading)


def test_control_characters_in_an_error_do_not_reach_the_terminal(kvd: "RealDaemon") -> None:
    done = kvd.run("--config", f"{kvd.folder}/\x1b[2J\n.toml")
    assert (done.returncode, done.stderr.count(b"\n"), b"\x1b" in done.stderr) == (78, 1, False)
    assert rb"\x1b[2J\n.toml" in done.stderr


def test_a_removed_socket_is_made_again_by_a_reload(kvd: "RealDaemon") -> None:
    process = kvd.serve()
    os.unlink(kvd.path)
    process.send_signal(signal.SIGHUP)
    kvd.wait_until_it_answers()
    with kvd.connect() as peer:
        os.unlink(kvd.path)
        assert peer.ask(["reload"]) == [[f"listen.socket: it was gone, and was made again at {kvd.path}"]]
        assert peer.ask(["reload"]) == [[]]
    assert kvd.ask(["ping"]) == [True]
    assert kvd.stop(process) == 0
    assert kvd.files() == []
