"""The keys of a benchmark: below a prefix of its own, loaded before it and removed after it."""

import os
from itertools import islice

from kv.cli.bench.choices import key_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kv.blocking.client import Client
    from kv.cli.bench.plan import Plan
    from kvd.service.progress import ProgressBar

# Every key of every benchmark begins with it: for access rules, and for `kv del --prefix` after a `kill -9`.
PREFIX = "kv-bench/"
_BATCH_KEYS = 1_000
_BATCH_BYTES = 1 << 20


def new_prefix() -> str:
    """Return a prefix that no other run has: 64 random bits."""
    return f"{PREFIX}{os.urandom(8).hex()}/"


def load(client: "Client", plan: "Plan", prefix: str, bar: "ProgressBar") -> None:
    """Set all keys, so that every get finds one."""
    batch = max(1, min(_BATCH_KEYS, _BATCH_BYTES // max(1, plan.value_bytes)))
    value = os.urandom(plan.value_bytes)
    for begin in range(0, plan.keys, batch):
        end = min(begin + batch, plan.keys)
        client.set_many({key_of(prefix, number): value for number in range(begin, end)}, sync=False)
        bar.update(end, plan.keys)


def remove(client: "Client", prefix: str, bar: "ProgressBar") -> int:
    """Delete every key with the prefix, after the last write there; return how many there were."""
    items = client.scan(prefix, keys_only=True)
    count = 0
    while names := [item.key for item in islice(items, _BATCH_KEYS)]:
        count += client.delete(*names, missing_ok=True, sync=False)
        bar.update(count, 0)
    return count
