"""What ``import kv`` imports: nothing that a short-lived command does not need. And no modules import each other."""

import ast
import pathlib
import subprocess
import sys

import pytest

import kv
from tests.harness.processes import ROOT, run_python

HEAVY = {
    "msgspec",
    "msgpack",
    "asyncio",
    "typing",
    "socket",
    "uvloop",
    "re",
    "threading",
    "dataclasses",
    "selectors",
    "ssl",
}


def imported_by(code: str) -> set[str]:
    """Return the modules of HEAVY, and of the daemon, that a fresh interpreter has imported after ``code``."""
    probe = f"import sys; {code}; print('\\n'.join(sys.modules))"
    done = subprocess.run(  # noqa: S603 (our own interpreter)
        [sys.executable, "-S", "-c", probe], env={"PYTHONPATH": ":".join([str(ROOT), *sys.path])},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    modules = set(done.stdout.split())
    return modules & HEAVY | {name for name in modules if name.startswith("kvd.") and name.count(".") == 1}


def test_importing_kv_imports_nothing_heavy() -> None:
    assert imported_by("import kv") == set()


def test_importing_the_client_imports_neither_codec_nor_socket() -> None:
    assert imported_by("import kv.blocking.client") == {"kvd.protocol"}


def test_a_light_client_imports_no_msgspec() -> None:
    code = "import kv.blocking.connect, kv.wire.codecs; kv.blocking.connect.connect('/x', codec=kv.wire.codecs.light())"
    assert imported_by(code).isdisjoint(HEAVY - {"msgpack"})


def test_connecting_imports_the_codec_for_programs() -> None:
    assert "msgspec" in imported_by("import kv; kv.connect('/x')")


def test_every_public_name_exists_and_is_listed() -> None:
    assert set(kv.__all__) <= set(dir(kv))
    for name in kv.__all__:
        assert getattr(kv, name).__name__ == name.removesuffix("_async")
    assert kv.aio.connect is kv.connect_async


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'kv' has no attribute 'Redis'"):
        kv.Redis  # noqa: B018


def imported_modules(path: pathlib.Path, modules: dict[str, pathlib.Path]) -> set[str]:
    """The modules of ``modules`` that one file imports: at its head, in functions, and for type checkers alone."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= submodules & modules.keys() or {str(node.module)}
    return names & modules.keys()


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that import each other, directly or through others."""
    reachable = {module: closure(module, imports) for module in imports}
    groups = {tuple(sorted({m for m in reachable[module] if module in reachable[m]})) for module in imports}
    return [list(group) for group in sorted(groups) if group]


def closure(module: str, imports: dict[str, set[str]]) -> set[str]:
    """All modules that ``module`` imports, directly or through others."""
    found: set[str] = set()
    waiting = [*imports[module]]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += imports[name]
    return found


def test_no_modules_import_each_other() -> None:
    """Not even for type checkers alone: so each module can be read before the modules that use it."""
    files = (path for path in (ROOT / "kv").rglob("*.py"))
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}
    assert circles({module: imported_modules(path, modules) for module, path in modules.items()}) == []


@pytest.mark.parametrize(
    ("imports", "found"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b"}, "b": {"a"}, "c": {"a"}}, [["a", "b"]]),
        ({"a": {"b"}, "b": {"c"}, "c": {"a"}}, [["a", "b", "c"]]),
    ],
)
def test_a_circle_of_imports_is_found(imports: dict[str, set[str]], found: list[list[str]]) -> None:
    assert circles(imports) == found


def test_imports_are_found_wherever_they_are(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("import a\nif TYPE_CHECKING:\n    from b import c\ndef f():\n    from d import e\n    import z\n")
    names = {"a": file, "b": file, "b.c": file, "d": file, "y": file}
    assert imported_modules(file, names) == {"a", "b.c", "d"}


def test_without_poll_the_error_says_what_took_it_away() -> None:
    code = "import select; del select.poll; import kv\ntry: kv.connect('/x')\nexcept ImportError as error: print(error)"
    assert b"eventlet.monkey_patch(select=False)" in run_python(code).stdout
