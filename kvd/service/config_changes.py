"""What differs between two configurations, in words: for whoever reloads, and for the log."""

from kvd.service.options import OPTIONS, PREFIX_OPTIONS, RELOADABLE_KEYS, RELOADABLE_SECTIONS, Config, Value


def changes(old: Config, new: Config) -> tuple[list[str], list[str]]:
    """What differs, a line for each option: what a reload can apply, and what needs a restart."""
    reloadable: list[str] = []
    restart: list[str] = []
    for key in OPTIONS:
        before, after = _get(old, key), _get(new, key)
        if before != after:
            is_reloadable = key.partition(".")[0] in RELOADABLE_SECTIONS or key in RELOADABLE_KEYS
            lines = reloadable if is_reloadable else restart
            lines.append(f"{key}: {_words(before)} → {_words(after)}")
    reloadable += _prefix_changes(old, new)
    gone = sum(rule not in new.access for rule in old.access)
    come = sum(rule not in old.access for rule in new.access)
    if gone or come:
        reloadable.append(f"[[access]]: {come} new, {gone} gone, {len(new.access)} in all")
    return reloadable, restart


def _prefix_changes(old: Config, new: Config) -> list[str]:
    before = {rule.prefix: rule for rule in old.prefix}
    after = {rule.prefix: rule for rule in new.prefix}
    lines = [f"[[prefix]] {prefix!r}: gone" for prefix in before if prefix not in after]
    for prefix, rule in after.items():
        was = before.get(prefix)
        if was is None:
            lines.append(f"[[prefix]] {prefix!r}: new")
            continue
        pairs = [(name, getattr(was, name), getattr(rule, name)) for name in PREFIX_OPTIONS]
        lines += [
            f"[[prefix]] {prefix!r}: {name}: {_toml(value)} → {_toml(wanted)}"
            for name, value, wanted in pairs
            if value != wanted
        ]
    return lines


def _toml(value: object) -> str:
    return "(none)" if value is None else str(value).lower()


def _get(config: Config, key: str) -> Value:
    section, _, name = key.partition(".")
    value: Value = getattr(getattr(config, section), name)
    return value


def _words(value: Value) -> str:
    text = ", ".join(value) if isinstance(value, tuple) else str(value)
    return text or "(none)"
