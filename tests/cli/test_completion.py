"""The candidates that kv gives to the script of a shell, tested without a shell."""

import json
import pathlib
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from kv.cli.live_keys import BUDGET_S, live_keys
from kv.cli.registry import COMMANDS

if TYPE_CHECKING:
    from tests.harness.kv_command import Kv


def answer(kv: "Kv", line: str, **more: str) -> "subprocess.CompletedProcess[bytes]":
    """Press TAB at the end of ``line``: the output on descriptor 8, and on the others."""
    variables = {
        "_ARGCOMPLETE": "1", "_ARGCOMPLETE_SHELL": "fish", "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "COMP_LINE": line, "COMP_POINT": str(len(line)),
    }  # fmt: skip
    return subprocess.run(  # noqa: S603 (the command under test)
        ["/bin/sh", "-c", 'exec "$@" 8>&1 1>&2', "sh", *kv.command],
        capture_output=True, env=kv.environment() | variables | more, timeout=30, check=False,
    )  # fmt: skip


def candidates(kv: "Kv", line: str) -> list[str]:
    """The candidates. There must be no other output."""
    result = answer(kv, line)
    assert (result.returncode, result.stderr) == (0, b"")
    return [word for word in result.stdout.decode().split("\v") if word]


def fill(kv: "Kv", keys: list[str]) -> None:
    """Set ``keys``."""
    kv.ok("set", "-", stdin="\n".join(json.dumps({"key": key, "value": ""}) for key in keys).encode())


def test_commands_are_offered_without_their_aliases(alone: "Kv") -> None:
    assert candidates(alone, "kv ") == [command.name for command in COMMANDS]
    assert candidates(alone, "kv se") == ["set", "serve"]
    assert candidates(alone, "kv srv") == ["srv"]


def test_options_are_offered_only_after_a_dash(kv: "Kv") -> None:
    assert candidates(kv, "kv get ") == []
    assert {"--raw", "--json", "--null", "-0", "--socket", "-s"} <= set(candidates(kv, "kv get -"))
    assert candidates(kv, "kv get --js") == ["--json"]


def test_options_are_offered_where_there_is_nothing_else(alone: "Kv") -> None:
    assert {"--daemon", "--socket-mode", "--tcp"} <= set(candidates(alone, "kv serve "))
    assert candidates(alone, "kv serve --tcp ") == []


def test_shells_topics_and_levels_are_offered(alone: "Kv") -> None:
    assert candidates(alone, "kv completion ") == ["bash", "zsh", "fish"]
    assert candidates(alone, "kv help ") == [*(command.name for command in COMMANDS), "exit-codes", "times"]
    assert candidates(alone, "kv serve --log-level ") == ["debug", "info", "warning", "error"]
    assert candidates(alone, "kv top-keys --by ") == ["size", "reads", "writes"]


def test_access_takes_a_user_then_a_key(kv: "Kv") -> None:
    fill(kv, ["root/of", "user"])
    assert "root" in candidates(kv, "kv access ro")
    assert candidates(kv, "kv access root ") == ["root/of", "user"]
    assert candidates(kv, "kv access root ro") == ["root/of"]


def test_keys_of_the_running_daemon_are_offered(kv: "Kv") -> None:
    fill(kv, ["user:1", "user:2", "v", "a=b", "-dash", "new\nline", "esc\x1b"])
    assert candidates(kv, "kv get user") == ["user:1", "user:2"]
    assert candidates(kv, "kv get ") == ["a=b", "user:1", "user:2", "v"]
    assert candidates(kv, "kv set ") == ["user:1=", "user:2=", "v="]
    assert candidates(kv, "kv get -- ") == ["-dash", "a=b", "user:1", "user:2", "v"]


def versions(kv: "Kv") -> list[str]:
    """The versions of all commits, the newest first."""
    return [line.split()[0] for line in reversed(kv.ok("log", "--all").splitlines())]


def test_versions_are_those_of_the_newest_commits(kv: "Kv") -> None:
    for number in range(25):
        kv.ok("set", f"a={number}")
    newest = versions(kv)[:20]
    for line in ("get --at ", "ls --at ", "rollback a --to ", "log --since ", "watch --since ", "diff ", "diff 1 ",
                 "revert ", "set --if-version "):  # fmt: skip
        assert candidates(kv, f"kv {line}") == newest, line
    start = newest[0][:-1]
    assert candidates(kv, f"kv get --at {start}") == [version for version in newest if version.startswith(start)]
    assert candidates(kv, f"kv get --at={newest[0]}") == [f"--at={newest[0]}"]
    assert candidates(kv, "kv diff 1 n") == ["now"]


def test_a_version_is_described_by_what_its_commit_did(kv: "Kv") -> None:
    kv.ok("set", "cake=1", "horns=2", "smiley=3")
    output = answer(kv, "kv revert ", _ARGCOMPLETE_DFS="\t").stdout.decode()
    assert output.partition("\t")[2].endswith("  cake, horns and 1 more")


def test_the_names_of_held_locks_are_offered(kv: "Kv") -> None:
    fill(kv, ["lock/backup/1", "lock/backup/2", "lock/build/3", "lock/", "lock/x", "lockers/1/2"])
    assert candidates(kv, "kv lock ") == ["backup", "build"]
    assert candidates(kv, "kv lock bu") == ["build"]


def test_durations_are_offered(alone: "Kv") -> None:
    assert candidates(alone, "kv set --ttl ") == ["30s", "5m", "1h", "1d", "7d"]
    assert candidates(alone, "kv incr --ttl 10") == ["10w", "10d", "10h", "10m", "10s", "10ms"]
    assert candidates(alone, "kv lock --ttl=1h3")[:2] == ["--ttl=1h3w", "--ttl=1h3d"]


def test_every_command_that_takes_keys_offers_them(kv: "Kv") -> None:
    fill(kv, ["user"])
    for command in ("ttl", "touch", "incr", "wait", "history", "rollback", "watch", "wait --key"):
        assert candidates(kv, f"kv {command} u") == ["user"], command
    assert candidates(kv, "kv txn u") == candidates(kv, "kv log u") == []


def test_programs_and_files_are_offered_after_two_dashes(kv: "Kv", tmp_path: pathlib.Path) -> None:
    fill(kv, ["key"])
    (tmp_path / "my-program").write_text("")
    (tmp_path / "key-file").write_text("")
    path = f"{tmp_path}:/nowhere"
    for command in ("lock L", "watch"):
        result = answer(kv, f"kv {command} -- my-", PATH=path)
        assert result.stdout == b"my-program"
        assert candidates(kv, f"kv {command} -- {tmp_path}/my") == [f"{tmp_path}/my-program"]
        assert candidates(kv, f"kv {command} -- cat {tmp_path}/k") == [f"{tmp_path}/key-file"]


def test_at_most_500_keys_are_offered(kv: "Kv") -> None:
    fill(kv, [f"key{number:04}" for number in range(700)])
    assert candidates(kv, "kv get key") == [f"key{number:04}" for number in range(500)]


def test_the_keys_are_those_of_the_daemon_on_the_line(kv: "Kv", alone: "Kv") -> None:
    fill(kv, ["here"])
    assert candidates(alone, "kv get h") == []
    assert candidates(alone, f"kv -s {kv.socket} get h") == ["here"]
    assert candidates(alone, f"kv get --socket={kv.socket} h") == ["here"]


def test_tab_is_not_counted_as_a_read(kv: "Kv") -> None:
    fill(kv, ["here"])
    candidates(kv, "kv get h")
    assert "Get Operations: 0\n" in kv.ok("metrics")


@pytest.fixture
def answering(alone: "Kv") -> Iterator[Callable[[bytes], None]]:
    """A server at the socket that is no kvd: it sends these bytes to the first client, and nothing more."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(alone.socket))
        listening.listen()
        connections = []

        def serve(data: bytes) -> None:
            connection, _ = listening.accept()
            connections.append(connection)
            connection.sendall(data)

        yield lambda data: threading.Thread(target=serve, args=(data,), daemon=True).start()
        for connection in connections:
            connection.close()


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00\x00", b"\x00\x00\x00\x05ab", b"\xff\xff\xff\xff", b"\x00\x00\x00\x01\xc1", b"HTTP/1.1 400\r\n\r\n",
     b"\x00\x00\x00\x02\x91\x80", b"\x00\x00\x00\x01\x90", b"\x00\x00\x00\x06\x91\x92\x92\x01\x02\xc0"],
)  # fmt: skip
def test_a_silent_or_broken_daemon_causes_no_output(
    alone: "Kv", answering: Callable[[bytes], None], data: bytes
) -> None:
    answering(data)
    assert candidates(alone, "kv get h") == []


def test_a_silent_daemon_is_given_a_second_for_its_reply(alone: "Kv", answering: Callable[[bytes], None]) -> None:
    """On a busy machine a healthy daemon may need most of that second, so no shorter limit may apply."""
    answering(b"")
    started = time.monotonic()
    assert live_keys("h", alone.socket, None) == []
    assert time.monotonic() - started >= BUDGET_S == 1.0


@pytest.mark.parametrize(
    "variables",
    [{"COMP_POINT": "x"}, {"COMP_LINE": "", "COMP_POINT": "0"}, {"_ARGCOMPLETE": "x"}, {"COMP_POINT": "999"},
     {"COMP_LINE": "kv -x get ", "COMP_POINT": "10"}, {"KVD_TIMEOUT": "soon"}],
)  # fmt: skip
def test_wrong_variables_of_the_shell_cause_no_output(alone: "Kv", variables: dict[str, str]) -> None:
    assert answer(alone, "kv get h", **variables).stderr == b""


def test_without_descriptor_8_there_is_no_output(alone: "Kv") -> None:
    result = alone(_ARGCOMPLETE="1", COMP_LINE="kv g", COMP_POINT="4")
    assert (result.stdout, result.stderr) == (b"", b"")


def test_files_are_offered_after_an_at_sign(alone: "Kv", tmp_path: pathlib.Path) -> None:
    (tmp_path / "one.txt").write_text("")
    (tmp_path / "once").mkdir()
    (tmp_path / ".hidden").write_text("")
    assert candidates(alone, f"kv set a=@{tmp_path}/on") == [f"a=@{tmp_path}/once/", f"a=@{tmp_path}/one.txt"]
    assert candidates(alone, f"kv set a=@{tmp_path}/") == [f"a=@{tmp_path}/once/", f"a=@{tmp_path}/one.txt"]
    assert candidates(alone, f"kv set a=@{tmp_path}/.") == [f"a=@{tmp_path}/.hidden"]
    assert candidates(alone, f"kv set --raw-values a=@{tmp_path}/") == []
    assert candidates(alone, f"kv set a=@{tmp_path}/none/") == []
