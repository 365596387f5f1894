"""The limits on the keys, values and counts of a request. A request beyond a limit gets an error reply."""

from collections.abc import Iterable, Mapping

from kvd.protocol.limits import Limits
from kvd.requests.errors import RequestError

MAX_TTL_MS = 100 * 365_25 * 24 * 36_000  # a hundred years of 365.25 days
# A page of a scan, a history or a log ends once it holds this much; its last item may overshoot.
PAGE_BYTES = 256 * 1024
# One reply lists no more keys, or slow frames, than this.
MAX_LISTED = 1_000


class LimitChecker:
    """Each method raises RequestError if the request is beyond the limit. A reload replaces ``limits``."""

    __slots__ = ("limits",)

    def __init__(self, limits: Limits) -> None:
        self.limits = limits

    def key(self, key: str) -> None:
        """Check one key."""
        if not key:
            raise RequestError("bad_request", "a key has at least one byte")
        # A code point is at most four bytes of UTF-8.
        if len(key) * 4 > self.limits.max_key_bytes and len(key.encode()) > self.limits.max_key_bytes:
            text = f"a key has at most {self.limits.max_key_bytes} bytes"
            raise RequestError("too_large", text, limit="max_key_bytes")

    def prefix(self, prefix: str) -> None:
        """Check a prefix of keys, which may be empty."""
        if prefix:
            self.key(prefix)

    def keys(self, keys: Iterable[str], count: int) -> None:
        """Check keys, of which there are ``count``."""
        self.count(count)
        for key in keys:
            self.key(key)

    def counts(self, counts: Iterable[int]) -> None:
        """Check how many keys, or ranges, of each sort one request names: before anything is computed from them."""
        for count in counts:
            self.count(count)

    def count(self, count: int) -> None:
        """Check how many keys one request names."""
        if count > self.limits.max_keys_per_request:
            text = f"a request names at most {self.limits.max_keys_per_request} keys"
            raise RequestError("too_large", text, limit="max_keys_per_request")

    def entries(self, entries: Mapping[str, bytes | None]) -> None:
        """Check what a request writes."""
        if not entries:
            return
        self.count(len(entries))
        if "" in entries or max(map(len, entries)) * 4 > self.limits.max_key_bytes:
            for key in entries:
                self.key(key)
        # filter() skips deletions. It also skips empty values, which are below every limit.
        if max(map(len, filter(None, entries.values())), default=0) > self.limits.max_value_bytes:
            text = f"a value has at most {self.limits.max_value_bytes} bytes"
            raise RequestError("too_large", text, limit="max_value_bytes")

    def page(self, limit: int, what: str) -> None:
        """Check the limit that a request sets for its own reply."""
        if not 1 <= limit <= self.limits.max_keys_per_request:
            raise RequestError("bad_request", f"the limit of {what} is 1 to {self.limits.max_keys_per_request}")

    def ttl(self, ttl_ms: int) -> None:
        """Check a time to live."""
        if not 1 <= ttl_ms <= MAX_TTL_MS:
            raise RequestError("bad_request", f"a ttl is 1 to {MAX_TTL_MS} ms")

    def listed(self, limit: int) -> None:
        """Check how many keys, or slow frames, a request wants listed."""
        if not 1 <= limit <= MAX_LISTED:
            raise RequestError("bad_request", f"a limit is 1 to {MAX_LISTED}")
