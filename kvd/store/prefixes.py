"""Rules for the keys below a prefix: their quota, how long they live, whether they may be evicted.

Of all rules whose prefix a key begins with, only the one with the longest prefix applies; rules do not add up.
"""

from collections.abc import Iterable

import msgspec


class PrefixRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One ``[[prefix]]`` of the configuration. 0 means no limit, and for a TTL no expiry; sizes are bytes.

    ``ttl_ms``: the TTL of keys that are written without one. ``max_ttl_ms``: the longest TTL that a key may have.
    ``history_ms``: how long superseded values are kept, if that is shorter than the history window. ``evict``: these
    keys are a cache, and may be evicted when memory is short. ``sync``: whether a write is acknowledged only once it is
    on the disk; None: as [data] says.
    """

    prefix: str
    max_bytes: int = 0
    max_keys: int = 0
    ttl_ms: int = 0
    max_ttl_ms: int = 0
    history_ms: int = 0
    evict: bool = False
    sync: bool | None = None

    @property
    def default_ttl_ms(self) -> int:
        """The TTL of a key that is written without one; 0 for none."""
        return self.ttl_ms or self.max_ttl_ms


class PrefixRules:
    """All rules, by key."""

    def __init__(self, rules: Iterable[PrefixRule] = ()) -> None:
        self.rules = tuple(rules)
        self._by_prefix = {rule.prefix: rule for rule in self.rules}
        self._lengths = sorted({len(rule.prefix) for rule in self.rules}, reverse=True)
        self.have_ttls = any(rule.default_ttl_ms for rule in self.rules)
        self.have_syncs = any(rule.sync is not None for rule in self.rules)

    def rule_of(self, key: str) -> PrefixRule | None:
        """Return the rule that applies to ``key``, or None."""
        for length in self._lengths:
            rule = self._by_prefix.get(key[:length])
            if rule is not None:
                return rule
        return None

    def by_rule(self, keys: list[str]) -> Iterable[tuple[PrefixRule | None, list[str]]]:
        """Return ``keys`` grouped by the rule that applies to them."""
        if self._lengths == [0]:
            return [(self._by_prefix[""], keys)]
        found: dict[str | None, tuple[PrefixRule | None, list[str]]] = {}
        for key in keys:
            rule = self.rule_of(key)
            found.setdefault(None if rule is None else rule.prefix, (rule, []))[1].append(key)
        return found.values()

    def __bool__(self) -> bool:
        return bool(self.rules)


NO_RULES = PrefixRules()
