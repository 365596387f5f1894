"""The API as a type checker sees it: each method has the right type for each kind of client."""

import pathlib
import subprocess
import sys
import zipfile

from tests.harness.processes import ROOT

USES = """
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import assert_type

import kv
from kv.aio import AsyncClient, AsyncTransaction
from kv.api.result import Result
from kv.api.transactions import Transaction


def blocking(db: kv.Client) -> None:
    assert_type(kv.connect("/x"), kv.Client)
    near = kv.connect("/x", near_cache=True)
    assert_type(near, kv.NearClient)
    assert_type(kv.connect("/x", near_cache=kv.NearCacheLimits(entries=10)), kv.NearClient)
    assert_type(near.get("a"), bytes | None)
    assert_type(near.get_many(["a"]), dict[str, bytes | None])
    assert_type(near.near_cache.stats(), kv.NearCacheStats)
    assert_type(db.get("a"), bytes | None)
    assert_type(db.get_many(["a"], at=3), dict[str, bytes | None])
    assert_type(db.fetch(["a"]), dict[str, kv.Versioned])
    assert_type(db.set("a", b"", ttl=1.5, keep_ttl=True), kv.Position)
    assert_type(db.delete("a", "b", missing_ok=True), int)
    assert_type(db.increment("a", 2), int)
    assert_type(db.compare_and_set("a", None, 3), kv.Position)
    assert_type(db.touch("a", ttl=None), list[bool])
    assert_type(db.get_and_touch("a", ttl=None), dict[str, bytes | None])
    assert_type(db.ttl("a"), list[float | None])
    assert_type(db.scan("a", limit=3), Iterator[kv.Item])
    assert_type(db.history("a"), Iterator[kv.Version])
    assert_type(db.log(limit=3), Iterator[kv.Commit])
    assert_type(db.rollback("a", to=3), kv.Position)
    assert_type(db.plan_revert(3), dict[str, bytes | None])
    with db.transaction() as txn:
        assert_type(txn, Transaction)
        assert_type(txn["a"], bytes)
        assert_type(txn.get("a", b""), bytes | None)
        assert_type(txn.scan(), Iterator[kv.Item])
        assert_type("a" in txn, bool)
    with db.snapshot() as snapshot:
        assert_type(snapshot.get("a"), bytes | None)
    with db.pipeline() as pipeline:
        assert_type(pipeline.get("a"), Result[bytes | None])
        assert_type(pipeline.set("a", b"").result(), kv.Position)
    with db.lock("a") as token:
        assert_type(token, int)
    for change in db.watch("a"):
        assert_type(change, kv.Change)
    assert_type(db.run(lambda txn: len(txn["a"])), int)


async def asynchronous(db: AsyncClient) -> None:
    assert_type(kv.connect_async("/x"), AsyncClient)
    near = kv.connect_async("/x", near_cache=True)
    assert_type(near, kv.AsyncNearClient)
    assert_type(await near.get("a"), bytes | None)
    assert_type(await near.get_many(["a"]), dict[str, bytes | None])
    assert_type(db.get("a"), Awaitable[bytes | None])
    assert_type(await db.get_many(["a"]), dict[str, bytes | None])
    assert_type(await db.increment("a"), int)
    assert_type(db.scan("a"), AsyncIterator[kv.Item])
    async for item in db.scan("a"):
        assert_type(item, kv.Item)
    assert_type(await db.rollback("a", to=3), kv.Position)
    async with db.transaction() as txn:
        assert_type(txn, AsyncTransaction)
        assert_type(await txn.get("a"), bytes | None)
    async with db.at(3) as snapshot:
        assert_type(await snapshot.fetch(["a"]), dict[str, kv.Versioned])
    async with db.pipeline() as pipeline:
        assert_type(pipeline.get("a"), Result[bytes | None])
    async with db.lock("a") as token:
        assert_type(token, int)
    async for change in db.watch("a"):
        assert_type(change, kv.Change)

    async def count(txn: AsyncTransaction) -> int:
        return 1

    assert_type(await db.run(count), int)
"""

MISTAKES = """
import kv
from kv.aio import AsyncClient


def blocking(db: kv.Client, adb: AsyncClient) -> None:
    db.get(1)
    db.set("a", "text")
    db.set("a", b"", tll=3)
    db.get("a") + b""
    db.delete("a", missing=True)
    len(adb.get("a"))
    for item in adb.scan("a"):
        pass
    db.increment("a", "1")
    db.lock("a", timeout="x")
"""


def checked(source: str, folder: pathlib.Path) -> subprocess.CompletedProcess[str]:
    """Check a program that uses the package with mypy --strict."""
    program = folder / "program.py"
    program.write_text(source)
    return subprocess.run(  # noqa: S603 (our own interpreter)
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(folder / "cache"), str(program)],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_each_method_has_the_right_type_for_its_client(tmp_path: pathlib.Path) -> None:
    done = checked(USES, tmp_path)
    assert done.returncode == 0, done.stdout


def test_mistakes_are_found(tmp_path: pathlib.Path) -> None:
    done = checked(MISTAKES, tmp_path)
    first = MISTAKES.splitlines().index("    db.get(1)") + 1
    lines = {int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error: " in line}
    assert lines == {*range(first, first + 7), first + 8, first + 9}, done.stdout


def test_the_wheel_is_marked_as_typed(tmp_path: pathlib.Path) -> None:
    script = f"from hatchling.build import build_wheel; print(build_wheel({str(tmp_path)!r}))"
    done = subprocess.run(  # noqa: S603 (our own interpreter)
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300, check=True
    )
    with zipfile.ZipFile(tmp_path / done.stdout.split()[-1]) as wheel:
        assert {"kv/py.typed", "kvd/py.typed"} <= set(wheel.namelist())
