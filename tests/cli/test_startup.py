"""The command starts fast because it imports little. Unlike a time limit, a list is the same on all machines."""

import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.harness.kv_command import Kv

# Runs in an interpreter of its own, and prints the modules that kv adds to those with which Python itself starts.
MODULES_OF = """
import os, sys
before = set(sys.modules)
from kv.cli.main import run
sys.stdout.flush()
status = run(sys.argv[1:])
assert status == 0, status
print("\\n".join(sorted(set(sys.modules) - before)), file=sys.stderr)
"""
# Modules of the standard library and of others, without those that are built into the interpreter. Each name here costs
# every `kv get` time: think before adding one.
ALLOWED = {
    *("argparse", "gettext", "functools", "collections", "collections.abc", "keyword", "operator", "reprlib", "types"),
    *("re", "re._casefix", "re._compiler", "re._constants", "re._parser", "enum", "copyreg", "warnings", "locale"),
    *("struct", "_struct", "_socket", "__future__"),
    *("msgpack", "msgpack._cmsgpack", "msgpack.exceptions", "msgpack.ext", "datetime", "_datetime", "math"),
}
HEAVY = {
    *("asyncio", "uvloop", "msgspec", "typing", "dataclasses", "json", "socket", "logging", "threading", "contextlib"),
    *("subprocess", "shutil", "pathlib", "argcomplete", "daemon", "importlib.metadata", "tomllib"),
}


def modules_of(kv: "Kv", *arguments: str) -> set[str]:
    """The modules that one command line imports."""
    result = subprocess.run(  # noqa: S603 (the command under test)
        [sys.executable, "-c", MODULES_OF, *arguments],
        capture_output=True,
        env=kv.environment(),
        timeout=30,
        check=True,
    )
    # Some interpreters have select built in, in others it is a file: the client uses it anyway.
    names = set(result.stderr.decode().split()) - set(sys.builtin_module_names) - {"select"}
    return {name for name in names if "cython" not in name.removeprefix("msgpack")}


def test_get_imports_only_what_it_needs(kv: "Kv") -> None:
    kv.ok("set", "a=1")
    for command in (["get", "a"], ["set", "a=2"], ["ls"]):
        others = {name for name in modules_of(kv, *command) if name.partition(".")[0] not in ("kv", "kvd")}
        assert others <= ALLOWED


def test_no_client_command_imports_anything_heavy(kv: "Kv") -> None:
    kv.ok("set", "first=1")  # version 1
    kv.ok("set", "a=1")  # version 2
    for command in (
        ["get", "a"],
        ["set", "a=1"],
        ["del", "a"],
        ["metrics"],
        ["ping"],
        ["status"],
        ["version"],
        ["help"],
        ["set", "--if-absent", "--ttl", "10m", "new=1"],
        ["get", "--at", "2", "a"],
        ["get", "--at", "0s", "a"],
        ["ls", "--at", "2"],
        ["ttl", "a"],
        ["touch", "--ttl", "1h", "a"],
        ["incr", "a"],
        ["wait", "a"],
        ["watch", "--since", "0", "--count", "1"],
        ["watch", "--since", "0", "--count", "1", "--", "true"],
        ["lock", "L", "--", "true"],
        ["history", "a"],
        ["log", "--since", "1"],
        ["diff", "1"],
        ["rollback", "--to", "2", "a"],
        ["revert", "-n", "1"],
        ["txn"],
    ):
        kv.ok("set", "a=1")
        assert not modules_of(kv, *command) & HEAVY, command


def test_get_imports_nothing_of_the_daemon(kv: "Kv") -> None:
    kv.ok("set", "a=1")
    of_the_daemon = {name for name in modules_of(kv, "get", "a") if name.startswith("kvd")}
    assert of_the_daemon <= {
        "kvd",
        "kvd.protocol",
        "kvd.protocol.address",
        "kvd.protocol.errors",
        "kvd.protocol.exits",
    }
