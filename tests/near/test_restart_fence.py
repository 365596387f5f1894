"""How long a daemon waits for the leases of one that died, judged by the file that that one left."""

import asyncio
import pathlib
import time

import pytest

from kvd.protocol.near_cache import CLOCK_TICK_MS, LEASE_MS
from kvd.service import restart_fence
from kvd.service.restart_fence import RestartFence

FENCE_S = (LEASE_MS + CLOCK_TICK_MS) / 1000


@pytest.fixture
def path(tmp_path: pathlib.Path) -> str:
    return str(tmp_path / "s")


def test_nobody_waits_for_nothing(path: str) -> None:
    assert RestartFence(path).left_s == 0


def test_the_file_of_the_same_boot_is_waited_for_from_when_the_lock_was_taken(path: str) -> None:
    RestartFence(path).write()
    before = time.monotonic()
    fence = RestartFence(path)
    after = time.monotonic()
    left, now = fence.left_s, time.monotonic()
    assert before + FENCE_S <= now + left
    assert left + before <= after + FENCE_S
    asyncio.run(fence.wait())
    assert time.monotonic() >= before + FENCE_S
    assert not pathlib.Path(path + ".dirty").exists()
    assert fence.left_s == 0


@pytest.mark.parametrize("found", [b"", b"unknown", b"0" * 35, b"\xff" * 200])
def test_a_file_that_names_no_boot_is_waited_for(path: str, found: bytes) -> None:
    pathlib.Path(path + ".dirty").write_bytes(found)
    assert RestartFence(path).left_s > 0


def test_the_file_of_another_boot_is_not(path: str) -> None:
    pathlib.Path(path + ".dirty").write_bytes(b"01234567-89ab-cdef-0123-456789abcdef")
    assert RestartFence(path).left_s == 0


def test_where_boots_have_no_ids_every_file_is_waited_for(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    RestartFence(path).write()
    monkeypatch.setattr(restart_fence, "_BOOT_ID", "/nowhere")
    fence = RestartFence(path)
    assert fence.left_s > 0
    fence.write()
    assert pathlib.Path(path + ".dirty").read_bytes() == b"unknown"
    assert RestartFence(path).left_s > 0


def test_what_cannot_be_read_is_waited_for_and_what_cannot_be_written_is_said(path: str) -> None:
    pathlib.Path(path + ".dirty").mkdir()
    fence = RestartFence(path)
    assert fence.left_s > 0
    with pytest.raises(OSError, match="directory"):
        fence.write()
    asyncio.run(fence.wait())


def test_it_writes_through_no_link(path: str, tmp_path: pathlib.Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("precious")
    pathlib.Path(path + ".dirty").symlink_to(elsewhere)
    with pytest.raises(OSError, match="symbolic"):
        RestartFence(path).write()
    assert elsewhere.read_text() == "precious"
