"""Who may import whom, and what nobody may use: read from the sources, without running them."""

import ast
import pathlib
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = sorted(path for package in ("kvd", "kv") for path in (ROOT / package).rglob("*.py"))

# A package, and which other packages of ours it may import. A package that is not listed may import none.
MAY_IMPORT = {
    "kvd.protocol.numbers": [],  # what counts as a number, for the store too
    "kvd.protocol": [],
    "kvd.store": ["kvd.protocol.numbers"],
    "kvd.telemetry": [],
    "kvd.journal": ["kvd.store"],
    "kvd.engine": ["kvd.protocol", "kvd.store", "kvd.journal", "kvd.telemetry"],
    "kvd.requests": ["kvd.protocol", "kvd.store", "kvd.engine", "kvd.telemetry"],
    "kvd.server": ["kvd.protocol", "kvd.engine", "kvd.requests", "kvd.telemetry"],
    "kvd.http": ["kvd.protocol", "kvd.requests", "kvd.server", "kvd.telemetry"],
    "kvd.service": [
        "kvd.protocol", "kvd.store", "kvd.journal", "kvd.engine", "kvd.requests", "kvd.server", "kvd.telemetry",
        "kvd.http",
    ],
    "kv": ["kvd.protocol", "kvd.protocol.numbers"],
}  # fmt: skip
# Short-lived clients import these of the protocol, and no more: the rest needs msgspec.
LIGHT = {
    "kvd.protocol",
    "kvd.protocol.address",
    "kvd.protocol.errors",
    "kvd.protocol.exits",
    "kvd.protocol.keepalive",
    "kvd.protocol.near_cache",
    "kvd.protocol.numbers",
    "kvd.protocol.ranges",
}
# The commands that run the daemon's own code; inside functions only.
RUNS_THE_DAEMON = {
    "kv/cli/commands/serve.py": {"kvd.service.serve"},
    "kv/cli/offline.py": {"kvd.service", "kvd.service.offline", "kvd.service.errors"},
}

FORBIDDEN_ANYWHERE = {
    "pickle", "cPickle", "marshal", "shelve", "dill", "yaml", "ctypes", "cffi", "zlib", "gzip", "bz2", "lzma",
    "zipfile", "tarfile", "code", "codeop", "runpy",
}  # fmt: skip
FORBIDDEN_CALLS = {"eval", "exec", "compile"}
# No clock, no disk, no network, no logging in the pure centre.
FORBIDDEN_IN_THE_CENTRE = {
    "time", "datetime", "os", "io", "socket", "_socket", "asyncio", "uvloop", "logging", "threading", "_thread",
    "select", "random", "secrets", "pathlib", "subprocess", "signal", "sys",
}  # fmt: skip
CENTRE = ("kvd/store/", "kvd/protocol/")
MAY_ALL_THE_SAME = {
    ("kvd/protocol/address.py", "os"),
    ("kvd/protocol/near_cache.py", "os"),  # whose clock this is
    ("kvd/protocol/keepalive.py", "_socket"),  # the names of options
    ("kvd/journal/records.py", "re"),  # two constant beginnings, in linear time, over a damaged file
}


def name(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


def tree(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text(), name(path))


def imports(node: ast.AST, *, lazily: bool = False, for_types: bool = False) -> Iterator[tuple[str, bool]]:
    """Yield each module imported below ``node``, and whether inside a function.

    ``for_types``: also what stands below ``if TYPE_CHECKING`` and never runs.
    """
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING") and not for_types:
            continue
        if isinstance(child, ast.Import):
            yield from ((alias.name, lazily) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "relative imports hide where they point"
            assert child.module is not None
            yield child.module, lazily
            yield from (
                (f"{child.module}.{alias.name}", lazily) for alias in child.names if is_module(child.module, alias.name)
            )
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from imports(child, lazily=lazily or inside, for_types=for_types)


def is_module(package: str, attribute: str) -> bool:
    path = ROOT / package.replace(".", "/") / attribute
    return path.is_dir() or path.with_suffix(".py").exists()


def layer(module: str) -> str | None:
    """Which of the layers a module belongs to; None for what is not ours."""
    if module in ("kvd", "kv"):
        return module
    found = [layer for layer in MAY_IMPORT if module == layer or module.startswith(layer + ".")]
    assert found or not module.startswith(("kvd.", "kv.")), f"{module} belongs to no layer: add it to MAY_IMPORT"
    return found[0] if found else None


def violations(source: str, path: str) -> list[str]:
    """What one file imports and may not."""
    own = layer(path.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    found = []
    for module, lazily in imports(ast.parse(source)):
        target = layer(module)
        if target in (None, own, "kvd"):  # the package itself holds the version and nothing else
            continue
        if lazily and module in RUNS_THE_DAEMON.get(path, set()):
            continue
        allowed = MAY_IMPORT.get(own or "", [])
        if target not in allowed or (own == "kv" and module not in LIGHT):
            found.append(f"{path} imports {module}")
    return found


def forbidden(source: str, path: str) -> list[str]:
    """What one file uses and nobody may."""
    parsed = ast.parse(source)
    banned = set(FORBIDDEN_ANYWHERE)
    if path.startswith("kvd/"):
        banned.add("re")  # an expression over a client's data may take for ever
    if path.startswith(CENTRE):
        banned |= FORBIDDEN_IN_THE_CENTRE
    used = {module.split(".")[0] for module, _ in imports(parsed)}
    found = [f"{path} imports {module}" for module in sorted(used & banned) if (path, module) not in MAY_ALL_THE_SAME]
    for node in ast.walk(parsed):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
            found.append(f"{path} calls {node.func.id}")
        if isinstance(node, ast.Attribute) and path.startswith("kvd/") and node.attr in ("__reduce__", "__setstate__"):
            found.append(f"{path} names {node.attr}")
    return found


def test_the_sources_were_found() -> None:
    found = {name(path) for path in SOURCES}
    assert {
        "kvd/store/store.py",
        "kvd/protocol/messages.py",
        "kvd/server/session.py",
        "kv/blocking/client.py",
        "kv/cli/main.py",
    } <= found
    assert {layer(path.parent.relative_to(ROOT).as_posix().replace("/", ".")) for path in SOURCES} >= {
        "kvd.store",
        "kv",
    }


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_imports_point_one_way(path: pathlib.Path) -> None:
    assert violations(path.read_text(), name(path)) == []


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_nothing_dangerous_is_used(path: pathlib.Path) -> None:
    assert forbidden(path.read_text(), name(path)) == []


def module_name(path: pathlib.Path) -> str:
    return name(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def all_imports() -> dict[str, set[str]]:
    """Each module of ours with those that it imports anywhere, for types alone too.

    ``from package import module`` imports the module; the package itself counts only if something of its own is taken.
    """
    modules = {module_name(path): path for path in SOURCES}
    found: dict[str, set[str]] = {}
    for module, path in modules.items():
        found[module] = set()
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Import):
                found[module] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                found[module] |= names & modules.keys()
                if not names <= modules.keys():
                    found[module].add(node.module)
        found[module] &= modules.keys() - {module}
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that import each other, directly or over others: Tarjan's algorithm (1972)."""
    numbers: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        numbers[module] = lowest[module] = len(numbers)
        stack.append(module)
        for target in sorted(graph.get(module, ())):
            if target not in numbers:
                visit(target)
                lowest[module] = min(lowest[module], lowest[target])
            elif target in stack:
                lowest[module] = min(lowest[module], numbers[target])
        if lowest[module] == numbers[module]:
            at = stack.index(module)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for module in sorted(graph):
        if module not in numbers:
            visit(module)
    return found


def test_no_modules_import_each_other() -> None:
    assert circles(all_imports()) == []


def test_modules_that_import_each_other_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def test_the_packages_themselves_are_light() -> None:
    """Importing any module of a package runs its __init__ first."""
    packages = [path.parent for path in SOURCES if path.name == "__init__.py"]
    packages = [name(path) for path in packages if name(path) not in ("kv", "kv/aio")]  # these hold what they offer
    assert len(packages) > 10
    for package in packages:
        assert list(imports(tree(ROOT / package / "__init__.py"))) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("kvd/store/store.py", "import kv"),
        ("kvd/server/server.py", "from kv.blocking.client import connect"),
        ("kvd/store/store.py", "from kvd.protocol import limits"),
        ("kvd/protocol/messages.py", "def f():\n    from kvd.store.errors import StoreError"),
        ("kvd/engine/database.py", "from kvd.requests.executor import Executor"),
        ("kvd/journal/recovery.py", "from kvd.engine.database import Database"),
        ("kvd/requests/peer.py", "from kvd.server.session import Session"),
        ("kvd/telemetry/slow_log.py", "from kvd.requests.table import TABLE"),
        ("kvd/http/v2.py", "from kvd.store.store import Store"),
        ("kvd/http/v2.py", "from kvd.engine.database import Database"),
        ("kvd/server/session.py", "from kvd.store.store import Store"),
        ("kvd/server/session.py", "import kvd.service.serve"),
        ("kv/blocking/client.py", "from kvd.protocol.messages import PROTOCOL"),
        ("kv/blocking/client.py", "from kvd.protocol import messages"),
        ("kv/blocking/client.py", "def f():\n    from kvd.service.serve import serve"),
        ("kv/cli/commands/serve.py", "from kvd.service.serve import serve"),
        ("kv/cli/commands/serve.py", "def f():\n    from kvd.server.server import Server"),
        ("kv/wire/operations.py", "if True:\n    import kvd.store.store"),
    ],
)  # fmt: skip
def test_an_import_that_points_the_wrong_way_is_found(path: str, source: str) -> None:
    assert len(violations(source, path)) >= 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("kvd/server/session.py", "import kvd.protocol.errors"),
        ("kv/blocking/client.py", "from kvd.protocol.address import parse_tcp"),
        ("kv/cli/commands/serve.py", "def f():\n    from kvd.service.serve import serve"),
        ("kv/blocking/client.py", "if TYPE_CHECKING:\n    from kvd.protocol import messages"),
        ("kv/cli/main.py", "from kv.blocking.client import connect"),
        ("kvd/requests/executor.py", "from kvd import __version__"),
    ],
)
def test_an_import_that_points_the_right_way_is_none(path: str, source: str) -> None:
    assert violations(source, path) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("kv/blocking/client.py", "import pickle"), ("kvd/server/server.py", "from marshal import loads"),
        ("kv/cli/main.py", "def f():\n    import yaml"), ("kvd/service/locks.py", "import ctypes.util"),
        ("kvd/requests/executor.py", "import re"), ("kvd/requests/executor.py", "import zlib"),
        ("kv/blocking/client.py", "eval('1')"),
        ("kvd/x.py", "exec(data)"), ("kvd/x.py", "compile(data, '', 'exec')"),
        ("kvd/store/store.py", "import time"), ("kvd/store/store.py", "from os import path"),
        ("kvd/store/x.py", "import asyncio"), ("kvd/protocol/address.py", "import socket"),
        ("kvd/protocol/address.py", "import logging"), ("kvd/protocol/messages.py", "import os"),
    ],
)  # fmt: skip
def test_what_nobody_may_use_is_found(path: str, source: str) -> None:
    assert len(forbidden(source, path)) == 1


def test_what_only_some_may_use_is_allowed_to_them() -> None:
    assert forbidden("import os", "kvd/protocol/address.py") == forbidden("import re, time", "kv/cli/parser.py") == []
