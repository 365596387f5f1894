"""Describe the machine of a run: another machine, or another build of Python, gives other figures."""

import importlib.metadata
import os
import platform
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from bench.errors import BenchError
from bench.peers.base import Peer

_LIBRARIES = ("msgspec", "uvloop", "msgpack", "argcomplete")


def describe(peers: Iterable[Peer]) -> dict[str, str]:
    """Return name → text, in the order to print."""
    facts = {
        "cores": str(len(os.sched_getaffinity(0))),
        "processor": _processor(),
        "kernel": platform.release(),
        "load average at start": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "interpreter": f"{sys.executable}: {platform.python_implementation()} {sys.version.replace(chr(10), ' ')}",
        "interpreter built with": _build(),
        "libraries": ", ".join(f"{name} {_version(name)}" for name in _LIBRARIES),
    }
    return facts | {peer.name: _peer_version(peer) for peer in peers}


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _build() -> str:
    """The interpreter's configure line and compiler flags. A distribution may optimise in ways they do not show."""
    configured = str(sysconfig.get_config_var("CONFIG_ARGS") or "")
    options = ("--enable-optimizations", "--with-lto", "--with-pydebug")
    facts = [f"{option} {'yes' if option in configured else 'no'}" for option in options]
    return ", ".join([*facts, f"flags {sysconfig.get_config_var('OPT') or 'unknown'}"])


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _peer_version(peer: Peer) -> str:
    try:
        return peer.version()
    except BenchError as error:
        return str(error)
