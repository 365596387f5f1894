"""What commands read from standard input and files: one that does not block, is closed, or has no end."""

import io
import json
import os
import pathlib
import subprocess
from collections.abc import Callable

import pytest

from kv import connect
from kv.cli import records as records_module
from kv.cli.failures import UsageError
from kv.cli.records import records
from tests.cli.conftest import Serving
from tests.harness.kv_command import Kv
from tests.harness.processes import KV, Process
from tests.harness.waiting import DEADLINE_S, eventually


def sleeps(process: Process) -> bool:
    """Whether the process waits in poll(2), as one does that has found its input empty for now."""
    with open(f"/proc/{process.pid}/wchan") as file:
        return "poll" in file.read() or process.poll() is not None


class Slow:
    """A command whose standard input is a pipe that does not block; the test writes to it in pieces."""

    def __init__(self, kv: Kv, *arguments: str) -> None:
        reader, self._writer = os.pipe()
        os.set_blocking(reader, False)
        self.process = kv.start(*arguments, stdin=reader, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        os.close(reader)

    def write(self, data: bytes) -> None:
        """Write after the command has found its input empty."""
        eventually(lambda: sleeps(self.process), "for the command to wait for its input")
        while data:
            data = data[os.write(self._writer, data[:50_000]) :]

    def end(self) -> tuple[int, bytes]:
        """Close the input and return the exit code and what was printed on stderr."""
        eventually(lambda: sleeps(self.process), "for the command to wait for its input")
        os.close(self._writer)
        _, error = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, error


LINE = b'{"key": "%s", "value": "1"}\n'
PIECES: dict[tuple[str, ...], list[bytes]] = {
    ("set", "-"): [LINE % b"a", LINE % b"b"],
    ("set", "a=1", "b=-"): [b"1"],
    ("txn",): [b"set a 1\n", b"set b 1\n"],
    ("import",): [LINE % b"a", LINE % b"b"],
    ("import", "--batches"): [LINE % b"a", LINE % b"b"],
    ("import", "--replace", "-"): [LINE % b"a", LINE % b"b"],
}


@pytest.mark.parametrize("arguments", PIECES, ids=" ".join)
def test_an_input_that_does_not_block_is_read_to_its_end(kv: Kv, arguments: tuple[str, ...]) -> None:
    kv.ok("set", "old=1")
    command = Slow(kv, *arguments)
    for piece in PIECES[arguments]:
        command.write(piece)
    assert command.end() == (0, b"")
    assert kv.ok("get", "a", "b") == "a: 1\nb: 1\n"
    assert (kv.ok("ls") == "a\nb\n") is ("--replace" in arguments)


@pytest.mark.parametrize("command", ["check", "restore"])
def test_a_backup_comes_from_an_input_that_does_not_block(kv: Kv, tmp_path: pathlib.Path, command: str) -> None:
    kv.ok("set", "a=1")
    data = kv("backup", "-").stdout
    reading = Slow(kv, command, "-", *([str(tmp_path / "new")] if command == "restore" else []))
    reading.write(data[:10])
    reading.write(data[10:])
    assert reading.end() == (0, b"")


@pytest.mark.parametrize("command", [["backup", "-"], ["export"], ["export", "-o", "/dev/stdout"]])
def test_an_output_that_does_not_block_gets_everything(kv: Kv, command: list[str]) -> None:
    with connect(kv.socket, timeout=DEADLINE_S) as db:
        db.set_many({f"key{number}": bytes(1000) for number in range(1000)})
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    process = kv.start(*command, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    eventually(lambda: sleeps(process), "for the command to fill the pipe")
    with open(reader, "rb") as stream:
        data = stream.read()
    assert (process.wait(DEADLINE_S), process.communicate()[1]) == (0, b"")
    assert len(data) > 1_000_000


def test_a_confirmation_is_waited_for_where_the_terminal_does_not_block(kv: Kv) -> None:
    kv.ok("set", "a/1=x")
    terminal, theirs = os.openpty()
    os.set_blocking(theirs, False)
    process = kv.start("del", "--prefix", "a/", stdin=theirs, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    try:
        assert b"[y/N]" in os.read(terminal, 1000)
        eventually(lambda: sleeps(process), "for the command to wait for the answer")
        os.write(terminal, b"y\n")
        assert process.wait(DEADLINE_S) == 0
        process.communicate()
    finally:
        os.close(terminal)
    assert kv.ok("ls") == ""


# ---------------------------------------------------------------------- inputs that cannot be read


UNREADABLE = {
    ("set", "-"): 2, ("set", "k=-"): 2, ("txn",): 2, ("import",): 2, ("import", "--batches"): 2,
    ("restore", "-", "NEW"): 74, ("check", "-"): 74,
}  # fmt: skip


@pytest.mark.parametrize("arguments", UNREADABLE, ids=" ".join)
@pytest.mark.parametrize("redirection", ["<&-", "0>/dev/null"])
def test_an_input_that_is_closed_or_not_for_reading_is_named(
    shared_kv: Kv, arguments: tuple[str, ...], redirection: str, tmp_path: pathlib.Path
) -> None:
    words = [str(tmp_path / "new") if word == "NEW" else word for word in arguments]
    command = ["sh", "-c", f'exec "$@" {redirection}', "sh", *KV, *words]
    done = subprocess.run(command, capture_output=True, env=shared_kv.environment(), timeout=DEADLINE_S, check=False)  # noqa: S603
    assert (done.returncode, done.stdout) == (UNREADABLE[arguments], b"")
    assert done.stderr.decode() == "kv: error: cannot read standard input: Bad file descriptor\n"


def test_a_file_that_cannot_be_read_is_named(shared_kv: Kv, tmp_path: pathlib.Path) -> None:
    assert f"cannot read {tmp_path}: Is a directory" in shared_kv.fails(2, "import", str(tmp_path))
    assert "for a value that begins with @" in shared_kv.fails(2, "set", f"a=@{tmp_path}")
    assert "cannot read ./-: No such file" in shared_kv.fails(2, "set", "a=@-")


class Endless(io.RawIOBase):
    """An input without a line's end and without an end; it counts how much of it was read."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        self.bytes += len(buffer)
        buffer[:] = b"x" * len(buffer)
        return len(buffer)


def test_a_line_without_an_end_is_refused_when_it_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records_module, "MAX_LINE_BYTES", 100_000)
    endless = Endless()
    with pytest.raises(UsageError, match=r"^line 1 of standard input is longer than 100000 bytes"):
        next(records(io.BufferedReader(endless), "standard input"))
    assert endless.bytes < 200_000


# ---------------------------------------------------------------------- kv import


def test_batches_begin_where_the_input_stands(kv: Kv, tmp_path: pathlib.Path) -> None:
    """A shell has read the first lines of the file, which are not for the command."""
    file = tmp_path / "x"
    file.write_bytes(b"a heading\n" + LINE % b"a" + LINE % b"b")
    command = ["sh", "-c", 'read heading; exec "$@" <&0', "sh", *KV, "import", "--batches"]
    with file.open("rb") as stdin:
        done = subprocess.run(  # noqa: S603 - our own command
            command, stdin=stdin, capture_output=True, env=kv.environment(), timeout=DEADLINE_S, check=False
        )
    assert (done.returncode, done.stderr) == (0, b"")
    assert kv.ok("ls") == "a\nb\n"


EMPTY = {
    "nothing": b"",
    "blank lines": b"\n\n",
    "only expired": b'{"key": "a", "value": "", "expires": "2001-01-01T00:00:00Z"}\n',
}


@pytest.mark.parametrize("text", EMPTY.values(), ids=EMPTY)
@pytest.mark.parametrize("more", [[], ["--batches"], ["--prefix", "a"], ["--dry-run"]], ids=" ".join)
@pytest.mark.parametrize("way", ["pipe", "file"])
def test_replace_by_nothing_is_refused_unless_it_is_meant(
    kv: Kv, tmp_path: pathlib.Path, text: bytes, more: list[str], way: str
) -> None:
    kv.ok("set", "a=1", "ab=2")
    (tmp_path / "x").write_bytes(text)
    source: Callable[..., str] = lambda *_: str(tmp_path / "x") if way == "file" else "-"  # noqa: E731
    error = kv.fails(2, "import", "--replace", *more, source(), stdin=text)
    assert "so --replace would delete all keys" in error
    assert "nothing was deleted; add --allow-empty if that is meant" in error
    assert kv.ok("ls") == "a\nab\n"
    kv.ok("import", "--replace", "--allow-empty", *more, source(), stdin=text)
    assert (kv.ok("ls") == "") is ("--dry-run" not in more)


def test_an_export_that_failed_deletes_nothing(kv: Kv, alone: Kv) -> None:
    kv.ok("set", "a=1")
    text = alone("export").stdout
    kv.fails(2, "import", "--replace", "-", stdin=text)
    assert kv.ok("ls") == "a\n"
    assert "--allow-empty is for --replace" in kv.fails(2, "import", "--allow-empty", stdin=text)


@pytest.mark.parametrize("way", [[], ["--batches"], ["--dry-run"], ["--replace"]], ids=" ".join)
def test_an_expiry_that_is_too_far_is_refused_with_its_line(kv: Kv, way: list[str]) -> None:
    far = b'{"key": "far", "value": "", "expires": "2990-01-01T00:00:00Z"}\n'
    error = kv.fails(2, "import", *way, stdin=LINE % b"a" + far)
    assert "line 2 of standard input: it would expire in more than a hundred years" in error
    assert kv.ok("ls") == ""


def test_an_export_of_the_longest_life_is_imported_as_it_is(serving: Serving) -> None:
    kv, other = serving()[0], serving()[0]
    with connect(kv.socket, timeout=DEADLINE_S) as db:
        # So close together that some of them are rounded up.
        for number in range(20):
            db.set(f"key{number}", b"1", ttl=3_155_760_000)
        db.set("last", b"1", ttl=3_155_760_000)
    text = kv.ok("export").encode()
    assert other.ok("import", stdin=text) == "Imported: 21 keys\n"


@pytest.mark.parametrize("way", [[], ["--batches"], ["--replace"]], ids=" ".join)
@pytest.mark.parametrize("what", ["key", "value"])
def test_a_record_that_is_too_large_by_itself_is_named_by_its_line(kv: Kv, what: str, way: list[str]) -> None:
    large = {"key": "k" * 5_000, "value": ""} if what == "key" else {"key": "k", "value": "v" * 9_000_000}
    text = LINE % b"a" + json.dumps(large).encode() + b"\n" + LINE % b"b"
    error = kv.fails(5, "import", *way, stdin=text)
    assert f"line 2 of standard input: a {what} has at most " in error
    assert error.endswith("; nothing was written\n")
    assert "--batches" not in error
    assert kv.ok("ls") == ""


def test_the_longest_life_is_that_of_the_daemon() -> None:
    from kv.cli.durations import MAX_S
    from kvd.requests.limits import MAX_TTL_MS

    assert MAX_S * 1000 == MAX_TTL_MS
