"""``kv export`` and ``kv import``: equal data is equal text, and an import restores it exactly."""

import json
import os
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pexpect
import pytest

from kv import connect
from kv.blocking.client import Client
from tests.harness.kv_command import Kv
from tests.harness.waiting import DEADLINE_S

VALUES = {
    "text": 'ä\n"quoted" \\ \u2028 \x1b[31m'.encode(),
    "binary": bytes(range(256)),
    "empty": b"",
    "key\nwith\x1b odd ✓ \U0001f600": b"1",
    "\x00zero": b"\x00",
    "halves": b"\xed\xa0\x80",
}


def client(kv: Kv) -> Client:
    return connect(kv.socket, timeout=DEADLINE_S)


def everything(kv: Kv) -> dict[str, bytes | None]:
    with client(kv) as db:
        return {item.key: item.value for item in db.scan()}


def lines(*fields: dict[str, object]) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in fields)


@pytest.fixture
def pair(serving: Callable[..., tuple[Kv, object]]) -> tuple[Kv, Kv]:
    """Two daemons."""
    return serving()[0], serving()[0]


def test_an_export_is_imported_as_it_was(pair: tuple[Kv, Kv]) -> None:
    kv, other = pair
    with client(kv) as db:
        db.set_many(VALUES)
    text = kv.ok("export")
    assert [json.loads(line)["key"] for line in text.splitlines()] == sorted(VALUES, key=str.encode)
    assert text.isascii() or text.replace("\n", "").isprintable()
    assert other.ok("import", stdin=text.encode()) == f"Imported: {len(VALUES)} keys\n"
    assert everything(other) == VALUES
    assert other.ok("export") == text


def until_a_whole_second(seconds: int) -> float:
    """A time to live of about ``seconds`` that ends with a second of the clock.

    An export rounds to the second what it works out from the time that is left. Two of them can differ only if one of
    them is half a second wrong.
    """
    return seconds - time.time() % 1


def test_an_export_has_the_expiry_of_each_key(pair: tuple[Kv, Kv]) -> None:
    kv, other = pair
    with client(kv) as db:
        db.set("soon", b"", ttl=until_a_whole_second(1000))
        db.set("later", b"", ttl=until_a_whole_second(5000))
        db.set("never", b"")
    text = kv.ok("export")
    assert text == kv.ok("export")
    other.ok("import", "-", stdin=text.encode())
    with client(other) as db:
        soon, later, never = db.ttl("soon", "later", "never")
    assert soon is not None
    assert later is not None
    assert 900 < soon <= 1001
    assert 4900 < later <= 5001
    assert never == float("inf")


def test_import_leaves_out_what_has_expired(kv: Kv) -> None:
    old = {"key": "old", "value": "", "expires": "2001-01-01T00:00:00Z"}
    output = kv.ok("import", stdin=lines(old, {"key": "new", "value": ""}))
    assert output == "Imported: 1 key, 1 left out that have expired\n"
    assert kv.ok("ls") == "new\n"


def test_export_of_a_prefix(kv: Kv) -> None:
    kv.ok("set", "a/1=x", "a/2=y", "b=z")
    assert [json.loads(line)["key"] for line in kv.ok("export", "a/").splitlines()] == ["a/1", "a/2"]


def test_an_exported_file_is_complete_or_does_not_appear(kv: Kv, alone: Kv, tmp_path: pathlib.Path) -> None:
    kv.ok("set", "a=1")
    kv.ok("export", "-o", str(tmp_path / "x"))
    assert (tmp_path / "x").read_text() == kv.ok("export")
    alone.fails(69, "export", "-o", str(tmp_path / "x"))
    assert (tmp_path / "x").read_text() == kv.ok("export")
    alone.fails(69, "export", "-o", str(tmp_path / "y"))
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert "No space left" in kv.fails(74, "export", "-o", "/dev/full")


def test_an_export_is_of_one_instant_during_writes(kv: Kv) -> None:
    """Every commit writes the same to two keys that are far apart."""
    stopping = threading.Event()
    with client(kv) as db:
        db.set_many({f"m{number:06}": b"" for number in range(20_000)})
        db.set_many({"a": b"0", "z": b"0"})

    def write() -> None:
        with client(kv) as db:
            number = 0
            while not stopping.is_set():
                number += 1
                db.set_many({"a": b"%d" % number, "z": b"%d" % number})

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(3):
            found = {record["key"]: record["value"] for record in map(json.loads, kv.ok("export").splitlines())}
            assert found["a"] == found["z"]
            assert len(found) == 20_002
    finally:
        stopping.set()
        writer.join(DEADLINE_S)


def test_merge_leaves_others_and_replace_does_not(kv: Kv) -> None:
    text = lines({"key": "a", "value": "new"})
    kv.ok("set", "a=old", "b=2", "c/1=3")
    assert kv.ok("import", stdin=text) == "Imported: 1 key\n"
    assert everything(kv) == {"a": b"new", "b": b"2", "c/1": b"3"}
    before = json.loads(kv.ok("status", "--json"))["version"]
    assert kv.ok("import", "--replace", stdin=text) == "Imported: 1 key, 2 deleted\n"
    assert everything(kv) == {"a": b"new"}
    assert json.loads(kv.ok("status", "--json"))["version"] == before + 1


def test_replace_below_a_prefix(kv: Kv) -> None:
    kv.ok("set", "p/old=1", "q=2")
    assert "does not begin with" in kv.fails(
        2, "import", "--replace", "--prefix", "p/", stdin=lines({"key": "x", "value": ""})
    )
    kv.ok("import", "--replace", "--prefix", "p/", stdin=lines({"key": "p/new", "value": ""}))
    assert everything(kv) == {"p/new": b"", "q": b"2"}


def test_replace_is_exact_during_writes(kv: Kv) -> None:
    """Each key that the writer adds is deleted by the next import, or comes after it: none is left in between."""
    with client(kv) as db:
        db.set_many({f"old{number}": b"" for number in range(100)})
        versions = []
        for number in range(20):
            db.set(f"mine{number}", b"")
            kv.ok("import", "--replace", stdin=lines({"key": "only", "value": str(number)}))
            versions.append(db.version())
        for version in versions:
            assert [item.key for item in db.scan(at=version)] == ["only"]


BAD = {
    b"nonsense": "not JSON",
    b"[1]": "not an object",
    b'{"key": "a"}': "not an object",
    b'{"key": "a", "value": 1}': "neither a text",
    b'{"key": "", "value": ""}': "at least one character",
    b'{"key": 3, "value": ""}': "not a text",
    b'{"key": "a", "value": {"base64": "?"}}': "",
    b'{"key": "a", "value": "", "more": 1}': "not an object",
    b'{"key": "a", "value": "", "expires": "tomorrow"}': "not a time",
    b'{"key": "a", "value": "", "expires": 3}': "not a time",
    b'{"key": "\\ud800", "value": ""}': "half of a character",
    b'{"key": "good", "value": "again"}': "in an earlier line",
    b"\xff": "not JSON",
}


@pytest.mark.parametrize("way", ["--merge", "--replace", "--batches"])
@pytest.mark.parametrize("line", BAD)
def test_a_bad_line_is_named_and_nothing_is_written(kv: Kv, line: bytes, way: str) -> None:
    kv.ok("set", "there=1")
    error = kv.fails(2, "import", way, stdin=lines({"key": "good", "value": ""}) + b"\n" + line + b"\n")
    assert "line 3 of standard input: " in error
    assert BAD[line] in error
    assert everything(kv) == {"there": b"1"}


def big(count: int) -> bytes:
    return b"".join(b'{"key": "k%06d", "value": "v"}\n' % number for number in range(count))


def test_import_of_more_than_a_commit_holds_needs_batches(kv: Kv) -> None:
    text = big(70_000)
    error = kv.fails(5, "import", stdin=text)
    assert "70000 keys do not fit into one commit" in error
    assert "nothing was written; --batches" in error
    assert everything(kv) == {}
    kv.ok("set", "other=1")
    assert kv.ok("import", "--batches", "--replace", stdin=text) == "Imported: 70000 keys, 1 deleted, in 15 commits\n"
    assert len(everything(kv)) == 70_000
    error = kv.fails(5, "import", "--replace", "--allow-empty", stdin=b"")
    assert "the keys to set and to delete do not fit into one commit" in error
    assert len(everything(kv)) == 70_000


def test_batches_from_a_file_are_checked_first(kv: Kv, tmp_path: pathlib.Path) -> None:
    (tmp_path / "x").write_bytes(big(20_000) + b"nonsense\n")
    error = kv.fails(2, "import", "--batches", str(tmp_path / "x"))
    assert "line 20001 of" in error
    assert everything(kv) == {}
    piped = kv.fails(2, "import", "--batches", stdin=big(20_000) + b"nonsense\n")
    assert "20000 keys were written, in 4 commits" in piped


def test_a_dry_run_writes_nothing(alone: Kv) -> None:
    assert alone.ok("import", "-n", stdin=big(3)) == "would import 3 keys\n"


def test_wrong_usage(alone: Kv) -> None:
    alone.fails(2, "export", "a", "b")
    alone.fails(2, "import", "a", "b")
    alone.fails(2, "import", "--merge", "--replace")
    assert "No such file" in alone.fails(2, "import", "/nowhere/x")


def test_export_ends_with_141_when_its_reader_has_gone(kv: Kv) -> None:
    with client(kv) as db:
        db.set_many({f"m{number:06}": bytes(100) for number in range(20_000)})
    process = kv.start("export", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline().startswith(b'{"key"')
    process.stdout.close()
    assert process.wait(DEADLINE_S) == 141
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()


def test_a_bar_on_a_terminal_and_none_in_a_pipe(kv: Kv, tmp_path: pathlib.Path) -> None:
    with client(kv) as db:
        for begin in range(0, 300_000, 50_000):
            db.set_many({f"m{number:06}": bytes(100) for number in range(begin, begin + 50_000)})
    command = ["-m", "kv", "export", "-o", str(tmp_path / "x")]
    child = pexpect.spawn(
        sys.executable, command, env=kv.environment() | {"TQDM_DELAY": "0"}, timeout=DEADLINE_S, dimensions=(24, 100)
    )  # type: ignore[arg-type]
    child.expect(r"export: +\d+%")
    child.expect(pexpect.EOF)
    assert kv.ok("export", "-o", str(tmp_path / "y")) == ""
    assert os.stat(tmp_path / "x").st_size == os.stat(tmp_path / "y").st_size
