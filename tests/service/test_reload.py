"""A reload, by SIGHUP and by `kv reload`: the whole configuration applies or nothing, and a line says which."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.harness.processes import Process
    from tests.harness.real_daemon import RealDaemon

# Asks for a reload as another user, and prints the code of the error.
ASK = """
import sys
import kv
try:
    kv.connect(sys.argv[1]).reload()
except kv.KvdError as error:
    print(error.code)
"""


@pytest.fixture(params=["SIGHUP", "kv reload"])
def how(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def serve(kvd: "RealDaemon", text: str, *flags: str) -> "Process":
    return kvd.serve("--config", kvd.configure(text), *flags)


def reload(kvd: "RealDaemon", process: "Process", how: str) -> str:
    """Reload; return the line that the daemon logs."""
    lines = len(kvd.log_lines())
    if how == "SIGHUP":
        process.send_signal(signal.SIGHUP)
        kvd.eventually(lambda: len(kvd.log_lines()) > lines)
    else:
        kvd.kv("reload")
    (line,) = kvd.log_lines()[lines:]
    return line


def max_key_bytes(kvd: "RealDaemon") -> int:
    """The limit in force, found by trying."""
    reply = kvd.ask(["set", {"k" * 11: b""}])[0]
    return 10 if isinstance(reply, dict) and reply["error"] == "too_large" else 4096


# ---------------------------------------------------------------------- what can be reloaded


def test_limits_apply_at_once_and_both_values_are_shown(kvd: "RealDaemon", how: str) -> None:
    process = serve(kvd, "")
    with kvd.connect() as old:
        assert old.ask(["ping"]) == [True]
        kvd.configure("limits.max_key_bytes = 10\n")
        assert reload(kvd, process, how) == "INFO reloaded: limits.max_key_bytes: 4096 → 10"
        assert max_key_bytes(kvd) == 10
        assert old.ask(["set", {"k" * 11: b""}])[0]["error"] == "too_large", "old connections too"


# Each limit with a request that is refused after the reload. The connection has a snapshot and ephemeral keys already.
RESOURCE_LIMITS = {
    "max_snapshots_per_connection": (1024, 1, [["begin"]], "too_large"),
    "max_ephemeral_keys_per_connection": (65536, 1, [["set", {"more": b""}, {"ephemeral": True}]], "too_large"),
    "max_remembered_writes": (65536, 0, [["set", {"x": b""}, {"id": b"i" * 16, "since": 0}]], "outcome_unknown"),
}


@pytest.mark.parametrize("name", RESOURCE_LIMITS)
def test_limits_of_a_connections_resources_apply_at_once(kvd: "RealDaemon", how: str, name: str) -> None:
    before, after, requests, code = RESOURCE_LIMITS[name]
    process = serve(kvd, "")
    with kvd.connect() as old:
        held = [["begin"], ["set", {"a": b""}, {"ephemeral": True}], ["set", {"a": b""}, {"id": b"j" * 16}]]
        old.ask(*held, ["set", {"mine": b""}, {"ephemeral": True}])
        kvd.configure(f"limits.{name} = {after}\n")
        assert reload(kvd, process, how) == f"INFO reloaded: limits.{name}: {before} → {after}"
        old.ask(["set", {"y": b""}, {"id": b"k" * 16}])
        assert old.ask(*requests)[0]["error"] == code


def test_the_snapshot_timeout_and_the_number_of_watches_change(kvd: "RealDaemon", how: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    flags = ("--tcp", f"127.0.0.1:{port}", "--token-file", kvd.write_token())
    process = serve(kvd, "history.max_versions = 0\nlimits.snapshot_idle_timeout_ms = 86400000\n", *flags)
    with kvd.connect() as holding, kvd.connect_tcp(port) as watching:
        watching.ask(["hello", 1, "test", kvd.token])
        kvd.ask(["set", {"a": b"old"}])
        snapshot = holding.ask(["begin"])[0]
        kvd.configure(
            "history.max_versions = 0\nlimits.snapshot_idle_timeout_ms = 10\nlimits.max_watches_per_uid = 0\n"
        )
        reload(kvd, process, how)
        assert watching.ask(["watch", ""])[0]["error"] == "busy"

        def is_released() -> bool:
            kvd.ask(["set", {"a": b"new"}])
            return bool(kvd.ask(["get_many", ["a"], snapshot]) != [[b"old"]])

        kvd.eventually(is_released)
        assert holding.ask(["end", snapshot]) == [False]


def test_removing_a_token_ends_its_connections(kvd: "RealDaemon", how: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    token_file = pathlib.Path(kvd.write_token())
    token_file.write_text(f"ann {'a' * 16}\nbob {'b' * 16}\ncid {'c' * 16}\n", encoding="ascii")
    process = serve(kvd, "", "--tcp", f"127.0.0.1:{port}", "--token-file", str(token_file))
    with kvd.connect_tcp(port) as ann, kvd.connect_tcp(port) as bob, kvd.connect_tcp(port) as cid:
        for peer, letter in ((ann, "a"), (bob, "b"), (cid, "c")):
            peer.ask(["hello", 1, "test", letter * 16])
        token_file.write_text(f"ann {'a' * 16}\nbeb {'b' * 16}\ndan {'d' * 16}\n", encoding="ascii")
        assert reload(kvd, process, how) == "INFO reloaded: listen.token_file: other tokens"
        assert ann.ask(["ping"]) == [True]
        for peer in (bob, cid):
            last = peer.receive()
            assert isinstance(last, dict)
            assert last["error"] == "unauthenticated"
        with kvd.connect_tcp(port) as dan, kvd.connect_tcp(port) as other:
            assert isinstance(dan.ask(["hello", 1, "test", "d" * 16])[0], list)
            assert other.ask(["hello", 1, "test", "c" * 16])[0]["error"] == "unauthenticated"
        token_file.write_text("too short\n", encoding="ascii")
        with kvd.connect() as peer:
            assert "nothing was changed" in peer.ask(["reload"])[0]["message"]
        assert ann.ask(["ping"]) == [True]


def test_the_history_is_cut_to_its_new_length(kvd: "RealDaemon", how: str) -> None:
    process = serve(kvd, "")
    first = kvd.ask(["set", {"a": b"1"}])[0]
    kvd.ask(["set", {"a": b"2"}])
    assert kvd.ask(["get_many", ["a"], first]) == [[b"1"]]
    kvd.configure("history.max_versions = 0\n")
    assert reload(kvd, process, how) == "INFO reloaded: history.max_versions: 1000000 → 0"
    kvd.eventually(lambda: kvd.ask(["get_many", ["a"], first]) != [[b"1"]])
    assert kvd.ask(["get_many", ["a"], first])[0]["error"] == "snapshot_gone"


def test_the_log_level_changes(kvd: "RealDaemon", how: str) -> None:
    process = serve(kvd, "log.level = 'error'\n")
    assert not pathlib.Path(kvd.log_path).read_text(encoding="utf-8")
    kvd.configure("log.level = 'info'\n")
    assert reload(kvd, process, how) == "INFO reloaded: log.level: error → info"
    kvd.stop(process)
    assert kvd.log_lines()[-1] == f"INFO stopped: pid {process.pid}"


def test_the_command_says_what_changed(kvd: "RealDaemon") -> None:
    serve(kvd, "")
    kvd.configure("[limits]\nmax_key_bytes = 10\nmax_connections = 7\n[log]\nlevel = 'debug'\n")
    result = kvd.kv("reload")
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.decode().splitlines() == [
        "limits.max_connections: 10240 → 7", "limits.max_key_bytes: 4096 → 10", "log.level: info → debug",
    ]  # fmt: skip


def test_a_reload_without_changes_says_so(kvd: "RealDaemon", how: str) -> None:
    process = serve(kvd, "limits.max_key_bytes = 10\n")
    assert reload(kvd, process, how) == "INFO reloaded: nothing has changed"
    assert kvd.kv("reload").stdout == b"Nothing changed\n"


def test_flags_and_variables_still_beat_the_file(kvd: "RealDaemon", how: str) -> None:
    environment = kvd.environment(KVD_LIMITS_MAX_KEY_BYTES="10")
    process = kvd.serve("--config", kvd.configure(""), "--log-level", "info", env=environment)
    kvd.configure("limits.max_key_bytes = 20\nlog.level = 'error'\n")
    assert reload(kvd, process, how) == "INFO reloaded: nothing has changed"
    assert max_key_bytes(kvd) == 10


# ---------------------------------------------------------------------- what cannot be reloaded

WRONG = {
    "a listening option": ("listen.socket_mode = '0666'\n", "these need a restart: listen.socket_mode: 0600 → 0666"),
    "a syntax error": ("limits.max_value_bytes = \n", "line 2"),
    "an unknown option": ("limits.max_kye_bytes = 1\n", "limits.max_kye_bytes: no such option"),
    "a value out of bounds": ("limits.max_connections = 0\n", "limits.max_connections: 0 is too small"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_file_with_one_error_changes_nothing(kvd: "RealDaemon", how: str, wrong: str) -> None:
    text, words = WRONG[wrong]
    process = serve(kvd, "")
    kvd.configure("limits.max_key_bytes = 10\n" + text)
    line = reload(kvd, process, how)
    assert line.startswith("ERROR reload refused, nothing was changed: ")
    assert words in line
    assert max_key_bytes(kvd) == 4096
    assert os.stat(kvd.path).st_mode & 0o777 == 0o600


def test_the_command_fails_and_shows_the_reason(kvd: "RealDaemon") -> None:
    serve(kvd, "")
    kvd.configure("listen.tcp = ['127.0.0.1:7070']\n")
    result = kvd.kv("reload")
    assert (result.returncode, result.stdout) == (5, b"")
    assert result.stderr.decode().startswith("kv: error: nothing was changed: ")
    assert result.stderr.count(b"\n") == 1


@pytest.mark.parametrize("state", ["missing", "a directory", "writable for other users"])
def test_an_unusable_file_changes_nothing(kvd: "RealDaemon", how: str, state: str) -> None:
    process = serve(kvd, "limits.max_key_bytes = 10\n")
    if state == "writable for other users":
        os.chmod(kvd.config_path, 0o666)  # noqa: S103 - what the test is about
    else:
        os.unlink(kvd.config_path)
        if state == "a directory":
            os.mkdir(kvd.config_path)
    line = reload(kvd, process, how)
    assert line.startswith("ERROR reload refused, nothing was changed: ")
    assert kvd.config_path in line
    assert max_key_bytes(kvd) == 10


def test_after_a_refused_reload_a_corrected_file_applies(kvd: "RealDaemon", how: str) -> None:
    process = serve(kvd, "")
    kvd.configure("limits.max_key_bytes = 'ten'\n")
    assert reload(kvd, process, how).startswith("ERROR ")
    kvd.configure("limits.max_key_bytes = 10\n")
    assert reload(kvd, process, how) == "INFO reloaded: limits.max_key_bytes: 4096 → 10"


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user")
def test_a_user_who_may_use_the_socket_may_not_reload(kvd: "RealDaemon") -> None:
    os.chmod(kvd.folder, 0o755)  # noqa: S103 - a directory of the test's own
    serve(kvd, "", "--socket-mode", "0666")
    result = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", ASK, kvd.path], env=kvd.environment(), cwd="/",
        user=65533, group=65533, extra_groups=[], capture_output=True, timeout=30, check=False,
    )  # fmt: skip
    assert (result.stdout, result.stderr) == (b"forbidden\n", b"")
    assert kvd.log_lines()[-1].startswith("WARNING refused uid 65533 pid ")


# ---------------------------------------------------------------------- in another directory


def test_relative_paths_keep_their_meaning_in_a_daemon(kvd: "RealDaemon") -> None:
    """The daemon runs in /, but its socket and its file were named relative to where it was started."""
    kvd.configure("limits.max_key_bytes = 20\n")
    pid = kvd.detach("--socket", "s", "--config", "kvd.toml", cwd=kvd.folder)
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    kvd.configure("limits.max_key_bytes = 10\n")
    assert kvd.kv("reload").stdout.decode() == "limits.max_key_bytes: 20 → 10\n"
    os.kill(pid, signal.SIGHUP)
    kvd.eventually(lambda: kvd.log_lines()[-1] == "INFO reloaded: nothing has changed")
    kvd.end(pid)
    assert kvd.files() == []


def test_sighup_during_a_start_does_not_end_the_daemon(kvd: "RealDaemon") -> None:
    os.mkfifo(f"{kvd.folder}/fifo")
    launcher = kvd.start("--daemon", env=kvd.at_bind(f"wait {kvd.folder}/fifo"))
    writing = kvd.wait_at_fifo(f"{kvd.folder}/fifo")
    os.kill(int(pathlib.Path(kvd.lock_path).read_text(encoding="ascii")), signal.SIGHUP)
    os.close(writing)
    assert launcher.wait(30) == 0
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(kvd.path)
