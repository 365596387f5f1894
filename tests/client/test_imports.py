"""What ``import kv`` costs: nothing that a short-lived command does not need."""

import pathlib
import subprocess
import sys

import pytest

import kv

ROOT = pathlib.Path(__file__).parents[2]
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
    """What of HEAVY, and of the daemon, a fresh interpreter has imported after ``code``."""
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
    code = "import kv.blocking.client, kv.wire.codecs; kv.blocking.client.connect('/x', codec=kv.wire.codecs.light())"
    assert imported_by(code).isdisjoint(HEAVY - {"msgpack"})


def test_connecting_imports_the_codec_for_programs() -> None:
    assert "msgspec" in imported_by("import kv; kv.connect('/x')")


def test_every_public_name_is_there_and_listed() -> None:
    assert set(kv.__all__) <= set(dir(kv))
    for name in kv.__all__:
        assert getattr(kv, name).__name__ == name.removesuffix("_async")
    assert kv.aio.connect is kv.connect_async


def test_a_name_that_is_not_there_is_an_ordinary_error() -> None:
    with pytest.raises(AttributeError, match="module 'kv' has no attribute 'Redis'"):
        kv.Redis  # noqa: B018
