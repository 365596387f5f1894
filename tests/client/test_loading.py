"""A client that works after its first call needs no file to import from, and no fork cuts an import in two."""

import ast
import os
import pathlib
import signal
import sys
from collections.abc import Iterator

import pytest

from tests.harness.daemon import Daemon
from tests.harness.processes import ROOT, Process, kill, run_python, spawn
from tests.harness.waiting import DEADLINE_S

# What functions of the client import, and load_all does not.
NEEDED_BEFORE = {
    "importlib",  # kv.__getattr__, for the names of the package
    "kv.loading",
    "kv.near_cache.blocking",  # connect(near_cache=True) needs it before the first call
    "kv.near_cache.aio",
    "kv.wire.codecs",
    "msgspec",
    "msgpack",  # the short-lived command alone
    "kv.blocking.tls",  # for tls:// alone
}
ALL_CALLS = """
import kv
def use(db):
    db.set("a", b"1", ttl=60); db.get("a"); db.get_many(["a"]); db.fetch(["a"]); db.ttl("a"); db.touch("a", ttl=60)
    db.increment("n"); db.get_and_touch("a", ttl=60); db.largest_keys(); db.hottest_keys(); db.slow_log(); db.status()
    list(db.scan()); list(db.history("a")); list(db.log(limit=2)); db.rollback("a", to=db.version())
    version = db.set("r", b"1"); db.plan_revert(version); db.revert(version)
    with db.transaction() as txn: txn["t"] = (txn.get("t") or b"") + b"1"; list(txn.scan("t"))
    db.run(lambda txn: txn.set("t", b"2"))
    with db.snapshot() as snapshot: snapshot.get("t")
    with db.pipeline() as pipeline: pipeline.get("t")
    with db.lock("l"): pass
    db.cached("c", lambda: b"c")
    with db.watch("w") as watch: db.set("w", b""); next(watch)
    with db.mirror("t") as mirror: mirror.wait_for(db.version())
    db.delete("a", "n", "t", "r", "c", "w", missing_ok=True)
    try: db.compare_and_set("x", b"", 1)
    except kv.Conflict as conflict: conflict.conflicts
"""
ALL_AWAITED = """
import asyncio
async def use_async(db):
    await db.set("a", b"1"); await db.get("a"); await db.get_many(["a"]); await db.get_and_touch("a", ttl=60)
    [item async for item in db.scan()]; [version async for version in db.history("a")]
    async with db.transaction() as txn: txn.set("t", await txn.get("t") or b"1")
    async with db.snapshot() as snapshot: await snapshot.get("t")
    async with db.pipeline() as pipeline: pipeline.get("t")
    async with db.lock("l"): pass
    async def make(): return b"c"
    await db.cached("c", make)
    async with db.watch("w") as watch: await db.set("w", b""); await anext(watch)
    async with db.mirror("t") as mirror: await mirror.wait_for(await db.version())
    await db.delete("a", "t", "c", "w", missing_ok=True)
"""
# A process that has lost the files of its modules: nothing more can be imported.
LOSE_FILES = """
import sys
class Lost:
    def find_spec(self, name, path=None, target=None):
        raise ModuleNotFoundError(f"the file of {name} cannot be seen any more")
sys.meta_path[:] = [Lost()]
"""


def lazily_imported(path: pathlib.Path) -> Iterator[str]:
    """Yield the modules that functions of one file import."""
    for function in ast.walk(ast.parse(path.read_text())):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and (node.module, node.names[0].name) != ("kv", "aio"):
                yield str(node.module)


def test_everything_that_the_client_imports_later_is_loaded_at_its_first_call() -> None:
    folders = ("kv", "kv/api", "kv/blocking", "kv/near_cache", "kv/wire", "kv/aio")
    lazy = {module for folder in folders for path in (ROOT / folder).glob("*.py") for module in lazily_imported(path)}
    assert "kv.api.transactions" in lazy, "the test finds imports"
    code = "import sys; from kv.aio import client; client.load_all(None, *client._LATER); print(*sys.modules)"
    loaded = set(run_python(code).stdout.decode().split())
    assert lazy - loaded - NEEDED_BEFORE == set()


@pytest.mark.parametrize("near_cache", [False, True])
def test_after_the_first_call_nothing_has_to_be_imported(shared_daemon: Daemon, near_cache: bool) -> None:
    code = f"""{ALL_CALLS}{ALL_AWAITED}
db = kv.connect({shared_daemon.address!r}, timeout=60, near_cache={near_cache})
aio = kv.aio
db.ping()
async def main():
    async with kv.aio.connect({shared_daemon.address!r}, timeout=60, near_cache={near_cache}) as awaited:
        await awaited.ping()
        await awaited.close()
        {LOSE_FILES.replace(chr(10), chr(10) + " " * 8)}
        db.close()
        use(db)
        await use_async(awaited)
asyncio.run(main())
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_a_program_that_lost_its_files_is_told_that_there_is_no_daemon() -> None:
    code = f"""
import kv
db, there = kv.connect("/nonexistent/kvd.sock"), kv.connect("tcp://localhost:1", token_file=None)
for client in db, there:
    try: client.ping()
    except kv.Unavailable: pass
{LOSE_FILES}
for client in db, there:
    try: client.ping()
    except kv.Unavailable as error: print("unavailable:", error)
"""
    done = run_python(code)
    assert done.stdout.count(b"unavailable: no daemon at") == 2, done.stderr


@pytest.mark.parametrize(
    "cut", ["kv.blocking.connect", "msgspec", "kv.near_cache.blocking", "kv.api.procedures", "random", "kv.results"]
)
def test_a_fork_in_the_middle_of_an_import_leaves_a_child_that_works(shared_daemon: Daemon, cut: str) -> None:
    """A thread is held inside the import of one module until the process has forked, or the fork waits for it."""
    code = f"""
import os, sys, threading
inside, forked = threading.Event(), threading.Event()
os.register_at_fork(after_in_parent=forked.set)
class Held:
    def find_spec(self, name, path=None, target=None):
        if name == {cut!r} and not inside.is_set():
            inside.set()
            forked.wait(0.5)
sys.meta_path.insert(0, Held())
{ALL_CALLS}
def work():
    db = kv.connect({shared_daemon.address!r}, timeout=60, near_cache=True)
    use(db)
thread = threading.Thread(target=work)
thread.start()
inside.wait(60)
readable, writable = os.pipe()
child = os.fork()
if child == 0:
    os.read(readable, 1)
    work()
    os._exit(0)
thread.join(60)
os.write(writable, b"!")
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""
    program = spawn(sys.executable, "-c", code, start_new_session=True)
    try:
        assert program.wait(DEADLINE_S) == 0
    finally:
        end_group(program)


def end_group(program: Process) -> None:
    """End a program and the children that it has forked."""
    try:
        os.killpg(program.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    kill(program)
