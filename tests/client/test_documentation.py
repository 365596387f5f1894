"""docs/python.md: its examples run as they stand."""

import os
import pathlib
import subprocess
import sys
from typing import TYPE_CHECKING

import kv

if TYPE_CHECKING:
    from tests.harness.daemon import Daemon

PAGE = pathlib.Path(__file__).parents[2] / "docs/python.md"


def examples() -> str:
    """Return all examples of the page, as one program."""
    parts = PAGE.read_text().split("```python\n")[1:]
    return "\n".join(part.partition("```")[0] for part in parts)


def test_the_examples_run_against_a_daemon(shared_daemon: "Daemon") -> None:
    done = subprocess.run(  # noqa: S603 (our own interpreter)
        [sys.executable, "-W", "error", "-c", examples()],
        env=os.environ | {"KVD_SOCKET": shared_daemon.address}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "committed as version" in done.stdout


def test_every_public_error_and_method_is_documented() -> None:
    page = PAGE.read_text()
    errors = [
        name for name in kv.__all__ if isinstance(kind := getattr(kv, name), type) and issubclass(kind, Exception)
    ]
    missing = [name for name in errors if name not in page and name not in ("KvdError", "ProtocolError")]
    methods = [name for name in dir(kv.Client) if not name.startswith("_") and callable(getattr(kv.Client, name))]
    administration = {"metrics", "exposition", "status", "reload", "checkpoint", "shutdown", "ping"}
    administration |= {"server_pid", "wait_for_end", "version_at"}
    rarely_used = {"commit", "plan_rollback", "close"}
    missing += [name for name in methods if f"{name}(" not in page and name not in administration | rarely_used]
    assert missing == []
