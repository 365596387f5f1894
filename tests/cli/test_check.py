"""``kv check`` on sound, torn and damaged data directories, and what ``--salvage`` saves of them."""

import json
import os
import pathlib
import re
import signal
import subprocess
from collections.abc import Callable

import pytest

from kvd.journal.records import FORMAT
from tests.cli.test_backup import restored
from tests.harness.kv_command import Kv
from tests.harness.waiting import DEADLINE_S

Serving = Callable[..., tuple[Kv, "subprocess.Popen[bytes]"]]


def contents(directory: pathlib.Path) -> dict[str, tuple[bytes, int]]:
    """All files, with the times of their last changes."""
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in directory.iterdir()}


@pytest.fixture
def left_by(serving: Serving, tmp_path: pathlib.Path) -> Callable[[signal.Signals], pathlib.Path]:
    """Make a data directory with ten commits of one key, and end its daemon with a signal."""

    def end_with(number: signal.Signals) -> pathlib.Path:
        kv, process = serving("--data-dir", str(tmp_path / "data"))
        for value in range(1, 11):
            kv.ok("set", f"n={value}")
        process.send_signal(number)
        process.wait(DEADLINE_S)
        return tmp_path / "data"

    return end_with


def flip(path: pathlib.Path, what: bytes) -> None:
    """Change one bit where ``what`` stands."""
    data = bytearray(path.read_bytes())
    data[data.index(what)] ^= 1
    path.write_bytes(data)


def test_check_finds_a_sound_directory(left_by: Callable[[signal.Signals], pathlib.Path], alone: Kv) -> None:
    data = left_by(signal.SIGTERM)
    before = contents(data)
    assert re.fullmatch(r"Sound: version 10 of 20\d\d-.*, 1 key\n", alone.ok("check", str(data)))
    report = json.loads(alone.ok("check", "--json", str(data)))
    assert (report["sound"], report["version"], report["keys"], report["clean"]) == (True, 10, 1, True)
    assert (report["torn"], report["damages"], report["salvage"]) == (None, [], None)
    assert alone.ok("check", "-q", str(data)) == ""
    assert contents(data) == before


def test_check_after_kill_9_finds_that_nothing_is_missing(
    left_by: Callable[[signal.Signals], pathlib.Path], alone: Kv
) -> None:
    data = left_by(signal.SIGKILL)
    before = contents(data)
    text = alone.ok("check", str(data))
    assert "Sound: version 10" in text
    assert "did not stop in order; nothing is missing" in text
    assert contents(data) == before


def test_check_names_a_torn_tail(left_by: Callable[[signal.Signals], pathlib.Path], alone: Kv) -> None:
    data = left_by(signal.SIGKILL)
    log = data / "0000000001.log"
    content = log.read_bytes()
    end = len(content.rstrip(b"\0"))
    log.write_bytes(content[: end - 2])
    text = alone.ok("check", str(data))
    assert "Sound: version" in text
    assert re.search(rf"{log} is torn at byte \d+: the next start leaves out \d+ bytes after version", text)


def test_check_names_damage_and_salvage_saves_what_is_before_it(
    left_by: Callable[[signal.Signals], pathlib.Path], alone: Kv, serving: Serving, tmp_path: pathlib.Path
) -> None:
    data = left_by(signal.SIGTERM)
    flip(data / "0000000001.log", b"\xa1n\x91\xc4\x017")  # the value of the seventh commit
    before = contents(data)
    result = alone("check", str(data))
    text = result.stdout.decode()
    assert (result.returncode, result.stderr) == (65, b"")
    assert re.search(r"^Damaged: .*/0000000001.log at byte \d+: version 7 was on disk and cannot be read$", text, re.M)
    assert re.search(r"^Can be saved: all as of version 6 of 20\d\d", text, re.M)
    assert "Would be lost: versions 7 to 10\n" in text
    assert f"kv check --salvage {data} NEWDIR\n" in text
    report = json.loads(alone("check", "--json", str(data)).stdout)
    assert (report["sound"], report["version"], report["salvage"]["version"], report["salvage"]["lost_versions"]) == (
        False, None, 6, 4
    )  # fmt: skip
    start = alone.fails(65, "serve", "--data-dir", str(data))
    assert f"see: kv check {data}" in start

    saved = alone.ok("check", "--salvage", str(data), str(tmp_path / "saved"))
    assert re.fullmatch(r"Saved: version 6 of .*\nLost: versions 7 to 10\n", saved)
    assert contents(data) == before
    assert restored(serving, str(tmp_path / "saved")) == {"n": b"6"}


def test_a_later_checkpoint_saves_what_is_after_the_damage(serving: Serving, alone: Kv, tmp_path: pathlib.Path) -> None:
    data = tmp_path / "data"
    kv, process = serving("--data-dir", str(data))
    kv.ok("set", "n=marker")
    kv.ok("set", "m=1")
    kv.ok("checkpoint")
    kv.ok("set", "k=2")
    process.send_signal(signal.SIGTERM)
    process.wait(DEADLINE_S)
    flip(data / "0000000001.log", b"marker")
    result = alone("check", str(data))
    assert (result.returncode, b"only history, before version 2\n" in result.stdout) == (65, True)
    alone.ok("check", "--salvage", str(data), str(tmp_path / "saved"))
    assert restored(serving, str(tmp_path / "saved")) == {"n": b"marker", "m": b"1", "k": b"2"}


def test_check_says_when_nothing_can_be_saved(left_by: Callable[[signal.Signals], pathlib.Path], alone: Kv) -> None:
    data = left_by(signal.SIGTERM)
    (data / "0000000001.log").write_bytes(b"rubbish")
    result = alone("check", str(data))
    assert (result.returncode, b"Nothing can be saved" in result.stdout) == (65, True)
    assert "nothing of" in alone.fails(65, "check", "--salvage", str(data), str(data) + "2")
    assert not os.path.exists(str(data) + "2")


def test_check_refuses_a_newer_format(left_by: Callable[[signal.Signals], pathlib.Path], alone: Kv) -> None:
    from binascii import crc32

    data = left_by(signal.SIGTERM)
    log = data / "0000000001.log"
    raw = bytearray(log.read_bytes())
    raw[8] = FORMAT + 1
    raw[52:56] = crc32(raw[:52]).to_bytes(4, "little")
    log.write_bytes(raw)
    assert f"has format {FORMAT + 1}" in alone.fails(65, "check", str(data))


def test_check_refuses_what_is_not_a_data_directory(alone: Kv, tmp_path: pathlib.Path) -> None:
    assert "is not a data directory" in alone.fails(1, "check", str(tmp_path))
    assert "No such file" in alone.fails(74, "check", str(tmp_path / "missing"))
    assert list(tmp_path.iterdir()) == []


def test_a_sound_directory_is_salvaged_completely(
    left_by: Callable[[signal.Signals], pathlib.Path], alone: Kv, serving: Serving, tmp_path: pathlib.Path
) -> None:
    data = left_by(signal.SIGKILL)
    assert alone.ok("check", "--salvage", str(data), str(tmp_path / "saved")).startswith("Saved: version 10 of ")
    assert restored(serving, str(tmp_path / "saved")) == {"n": b"10"}


def test_wrong_usage(alone: Kv) -> None:
    alone.fails(2, "check")
    alone.fails(2, "check", "a", "b")
    alone.fails(2, "check", "--salvage", "a")
