"""The [[prefix]] tables of the configuration."""

import msgspec

from kvd.service.config.file import ConfigFile
from kvd.service.config.options import DAY_MS, GIB
from kvd.service.config.wording import explain, suggestion_or_all
from kvd.service.errors import ConfigError
from kvd.store.prefixes import PrefixRule

PREFIX_OPTIONS = tuple(field.name for field in msgspec.structs.fields(PrefixRule))
# The minimum and the maximum of each number; both are allowed.
PREFIX_BOUNDS: dict[str, tuple[int, int]] = {
    "max_bytes": (0, 1024 * GIB),
    "max_keys": (0, 1_000_000_000),
    "ttl_ms": (0, 100 * 365 * DAY_MS),
    "max_ttl_ms": (0, 100 * 365 * DAY_MS),
    "history_ms": (0, 100 * 365 * DAY_MS),
}


def prefix_rules(file: ConfigFile) -> tuple[PrefixRule, ...]:
    """Return the file's rules for prefixes. Raises ConfigError."""
    rules: dict[str, PrefixRule] = {}
    for origin, table in file.tables("prefix"):
        try:
            rule = _prefix_rule(table)
        except ValueError as error:
            raise ConfigError(f"{origin}: {error}") from None
        if rule.prefix in rules:
            raise ConfigError(f"{origin}: there is one for {rule.prefix!r} already")
        rules[rule.prefix] = rule
    return tuple(rules.values())


def _prefix_rule(table: object) -> PrefixRule:
    for name in table if isinstance(table, dict) else ():
        if name not in PREFIX_OPTIONS:
            raise ValueError(f"{name}: no such option{suggestion_or_all(name, PREFIX_OPTIONS)}")
    try:
        rule = msgspec.convert(table, PrefixRule)
    except msgspec.ValidationError as error:
        raise ValueError(explain(error)) from None
    _check(rule)
    return rule


def _check(rule: PrefixRule) -> None:
    for name, (minimum, maximum) in PREFIX_BOUNDS.items():
        value = getattr(rule, name)
        if not minimum <= value <= maximum:
            raise ValueError(f"{name}: {value} is out of bounds; allowed: {minimum} to {maximum}")
    if rule.ttl_ms > rule.max_ttl_ms > 0:
        raise ValueError(f"ttl_ms ({rule.ttl_ms}) may not be more than max_ttl_ms ({rule.max_ttl_ms})")
