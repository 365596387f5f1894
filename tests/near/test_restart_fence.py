"""How long a daemon waits for the leases of a dead one, judged by the file that the dead one has left."""

import asyncio
import errno
import os
import pathlib
import time

import pytest

from kvd.protocol.near_cache import CLOCK_TICK_MS, LEASE_MS
from kvd.service import resources
from kvd.service.restart_fence import RestartFence

FENCE_S = (LEASE_MS + CLOCK_TICK_MS) / 1000


@pytest.fixture
def path(tmp_path: pathlib.Path) -> str:
    return str(tmp_path / "s")


def test_without_a_file_there_is_no_wait(path: str) -> None:
    assert RestartFence(path).left_s == 0


def test_for_a_file_of_this_boot_the_wait_begins_when_the_fence_is_made(path: str) -> None:
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


@pytest.mark.parametrize("content", [b"", b"unknown", b"0" * 35, b"\xff" * 200])
def test_for_a_file_that_names_no_boot_there_is_a_wait(path: str, content: bytes) -> None:
    pathlib.Path(path + ".dirty").write_bytes(content)
    assert RestartFence(path).left_s > 0


def test_for_a_file_of_another_boot_there_is_no_wait(path: str) -> None:
    pathlib.Path(path + ".dirty").write_bytes(b"01234567-89ab-cdef-0123-456789abcdef")
    assert RestartFence(path).left_s == 0


def test_without_boot_ids_there_is_a_wait_for_every_file(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    RestartFence(path).write()
    monkeypatch.setattr(resources, "_BOOT_ID", "/nowhere")
    fence = RestartFence(path)
    assert fence.left_s > 0
    fence.write()
    assert pathlib.Path(path + ".dirty").read_bytes() == b"unknown"
    assert RestartFence(path).left_s > 0


def test_for_an_unreadable_file_there_is_a_wait(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    RestartFence(path).write()
    fence, open_ = RestartFence(path), os.open

    def refuse(name: str, *arguments: int) -> int:
        if name == path + ".dirty":
            raise PermissionError(errno.EACCES, "Permission denied")
        return open_(name, *arguments)

    monkeypatch.setattr(os, "open", refuse)
    assert fence.left_s > 0
    asyncio.run(fence.wait())


def test_what_is_no_file_of_a_daemon_is_passed_over_and_cannot_be_written(path: str) -> None:
    pathlib.Path(path + ".dirty").mkdir()
    fence = RestartFence(path)
    assert fence.left_s == 0
    with pytest.raises(OSError, match="directory"):
        fence.write()


def test_the_fence_does_not_write_through_a_symbolic_link(path: str, tmp_path: pathlib.Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("precious")
    pathlib.Path(path + ".dirty").symlink_to(elsewhere)
    with pytest.raises(OSError, match="symbolic"):
        RestartFence(path).write()
    assert elsewhere.read_text() == "precious"


def test_a_file_at_either_place_is_waited_for(tmp_path: pathlib.Path) -> None:
    """A successor on the same data may serve another socket, and one at the same socket other data."""
    one, other, data = (str(tmp_path / name) for name in ("one", "other", "data"))
    RestartFence(one, data).write()
    for fence in (RestartFence(other, data), RestartFence(one)):
        assert fence.left_s > 0
    assert RestartFence(other).left_s == 0
    asyncio.run(RestartFence(other, data).wait())
    assert RestartFence(other, data).left_s == 0
    assert RestartFence(one).left_s > 0, "who comes there has to wait for himself"
    RestartFence(one, data).remove()
    assert sorted(tmp_path.iterdir()) == []
