"""What differs between two configurations, in words, for the reply to a reload and for the log."""

from kvd.service.config.options import OPTIONS, Value
from kvd.service.config.prefix_rules import PREFIX_OPTIONS
from kvd.service.config.sections import RELOADABLE_KEYS, RELOADABLE_SECTIONS, Config


def changes(old: Config, new: Config) -> tuple[list[str], list[str]]:
    """Return what a reload can apply and what needs a restart, a line for each option that differs."""
    reloadable: list[str] = []
    restart: list[str] = []
    for key in OPTIONS:
        before, after = _get(old, key), _get(new, key)
        if before != after:
            lines = reloadable if _is_reloadable(key) else restart
            lines.append(f"{key}: {_show(before)} → {_show(after)}")
    return reloadable + _prefix_changes(old, new) + _access_changes(old, new), restart


def _is_reloadable(key: str) -> bool:
    return key.partition(".")[0] in RELOADABLE_SECTIONS or key in RELOADABLE_KEYS


def _prefix_changes(old: Config, new: Config) -> list[str]:
    old_rules = {rule.prefix: rule for rule in old.prefix}
    new_rules = {rule.prefix: rule for rule in new.prefix}
    lines = [f"[[prefix]] {prefix!r}: gone" for prefix in old_rules if prefix not in new_rules]
    for prefix, rule in new_rules.items():
        if prefix not in old_rules:
            lines.append(f"[[prefix]] {prefix!r}: new")
            continue
        pairs = [(name, getattr(old_rules[prefix], name), getattr(rule, name)) for name in PREFIX_OPTIONS]
        lines += [
            f"[[prefix]] {prefix!r}: {name}: {_show_toml(before)} → {_show_toml(after)}"
            for name, before, after in pairs
            if before != after
        ]
    return lines


def _access_changes(old: Config, new: Config) -> list[str]:
    """Count the rules that come and go. Their order means nothing."""
    removed = sum(rule not in new.access for rule in old.access)
    added = sum(rule not in old.access for rule in new.access)
    return [f"[[access]]: {added} new, {removed} gone, {len(new.access)} in all"] if removed or added else []


def _get(config: Config, key: str) -> Value:
    section, _, name = key.partition(".")
    value: Value = getattr(getattr(config, section), name)
    return value


def _show(value: Value) -> str:
    text = ", ".join(value) if isinstance(value, tuple) else str(value)
    return text or "(none)"


def _show_toml(value: object) -> str:
    return "(none)" if value is None else str(value).lower()
