"""Everything that a program's client may need after its first call, imported at that call.

Because later the process may not be able to import: it may have lost the files, by chroot or with its user's rights, or
be a child that was forked while another thread was importing. The short-lived command does without.
"""

import os
import sys

# What a client imports inside its functions. A test compares it with the sources.
_LATER = (
    "encodings.idna",  # Python itself imports it to look up a host's name
    "grp",
    "hashlib",
    "kv.api.cached",
    "kv.api.history",
    "kv.api.locks",
    "kv.api.pipeline",
    "kv.api.procedures",
    "kv.api.snapshots",
    "kv.api.transactions",
    "kv.blocking.mirror",
    "kv.blocking.steps",
    "kv.blocking.watch",
    "kv.near_cache.attach",
    "kv.results",
    "kvd.protocol.keepalive",
    "random",
    "select",
    "shlex",
    "socket",
    "time",
)
# The package's own: there must be nothing to import before it.
importing = sys.modules["kv"].importing


def load_all(address: str | None, *more: str) -> None:
    """Import what a client of the daemon at ``address`` may need later, and the modules ``more``."""
    needs_tls = (address or os.environ.get("KVD_SOCKET") or "").startswith("tls://")
    with importing:
        for name in (*_LATER, *(["kv.blocking.tls"] if needs_tls else []), *more):
            __import__(name)
