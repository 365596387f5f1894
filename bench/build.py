"""Compile the C programs of this folder into the temporary directory of the run."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from bench.errors import BenchError
from bench.process import output

_SOURCES = Path(__file__).parent


TLS = ("-DWITH_TLS", "-lssl", "-lcrypto")


def compile_c(name: str, directory: Path, flags: Sequence[str] = ()) -> Path:
    """Compile NAME.c, once a run, and return the path of the program. Raises BenchError without gcc."""
    program = directory / "".join((name, *flags))
    if program.exists():
        return program
    gcc = shutil.which("gcc")
    if gcc is None:
        raise BenchError("gcc is not installed, and the load generator is a C program: apt-get install gcc libc6-dev")
    output([gcc, "-O2", "-Wall", "-o", str(program), str(_SOURCES / f"{name}.c"), *flags])
    return program
