"""The [[access]] tables of the configuration. Names of users and groups become numbers; an unknown name is an error."""

import grp
import pwd
from collections.abc import Callable
from typing import Any

import msgspec

from kvd.requests.access import OVERFLOW_ID, RIGHTS, AccessRule
from kvd.service.config.file import ConfigFile
from kvd.service.config.wording import explain, suggestion, suggestion_or_all
from kvd.service.errors import ConfigError

# Of these exactly one says whom a rule is for.
_SUBJECTS = ("user", "group", "uid", "gid", "certificate", "token", "everyone")
_NAMES = ("prefix", "rights", *_SUBJECTS)


def access_rules(file: ConfigFile) -> tuple[AccessRule, ...]:
    """Return the file's access rules. Raises ConfigError."""
    rules = []
    for origin, table in file.tables("access"):
        try:
            rules.append(_access_rule(table))
        except ValueError as error:
            raise ConfigError(f"{origin}: {error}") from None
    return tuple(rules)


def _access_rule(table: object) -> AccessRule:
    if not isinstance(table, dict):
        raise ValueError("expected a table; write [[access]], in two brackets, once for each rule")
    for name in table:
        if name not in _NAMES:
            raise ValueError(f"{name}: no such option{suggestion_or_all(name, _NAMES)}")
    subjects = [name for name in _SUBJECTS if name in table]
    if len(subjects) != 1:
        raise ValueError(f"who is it for? exactly one of {', '.join(_SUBJECTS)}, not {len(subjects)} of them")
    try:
        rule = msgspec.convert(_with_numbers(table), AccessRule)
    except msgspec.ValidationError as error:
        raise ValueError(explain(error)) from None
    _check(rule, table)
    return rule


def _with_numbers(table: dict[str, Any]) -> dict[str, Any]:
    """Return ``table`` with the uid of its user or the gid of its group."""
    fields = {name: value for name, value in table.items() if name not in ("user", "group")}
    if "user" in table:
        fields["uid"] = _number(table["user"], "user", lambda name: pwd.getpwnam(name).pw_uid)
    if "group" in table:
        fields["gid"] = _number(table["group"], "group", lambda name: grp.getgrnam(name).gr_gid)
    return fields


def _number(name: object, kind: str, look_up: Callable[[str], int]) -> int:
    if not isinstance(name, str):
        raise ValueError(f"{kind}: expected a name in quotes; a number is {kind[0]}id = {name}")
    try:
        return look_up(name)
    except KeyError:
        raise ValueError(f"{kind}: there is no {kind} {name!r} on this host") from None


def _check(rule: AccessRule, table: dict[str, Any]) -> None:
    for name in rule.rights:
        if name not in RIGHTS:
            raise ValueError(f"rights: {name!r} is none of {', '.join(RIGHTS)}{suggestion(name, RIGHTS)}")
    if "rights" not in table:
        raise ValueError('rights: which? for example rights = ["read"]; [] is none')
    if OVERFLOW_ID in (rule.uid, rule.gid):
        raise ValueError(f"{OVERFLOW_ID} is what the kernel shows for ids that have no name here; it never matches")
    if "everyone" in table and not rule.everyone:
        raise ValueError("everyone: true, or leave it out")
