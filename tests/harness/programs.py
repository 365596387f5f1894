"""Programs of the system without which a test cannot run."""

import os
import shutil

import pytest

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def require(*programs: str, root: bool = False) -> None:
    """Skip the test where a program, or root's rights, are missing; fail it in CI, where nothing may be missing."""
    missing = [program for program in programs if shutil.which(program, path=PATH) is None]
    missing += ["root's rights"] if root and os.geteuid() != 0 else []
    if missing and "CI" not in os.environ:
        pytest.skip(f"needs {', '.join(missing)}")
    assert not missing
