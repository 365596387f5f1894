"""The [[access]] tables of the configuration: users and groups by name become numbers, and nothing is guessed."""

import grp
import pwd
from typing import Any

import msgspec

from kvd.requests.access import OVERFLOW_ID, RIGHTS, AccessRule
from kvd.service.options import in_words, suggestion

_WHO = ("user", "group", "uid", "gid", "certificate", "token", "everyone")
_NAMES = ("prefix", "rights", *_WHO)


def access_rule(table: object) -> AccessRule:
    """The rule that a table says. Raises ValueError: what is wrong, and what is allowed."""
    if not isinstance(table, dict):
        raise ValueError("expected a table; write [[access]], in two brackets, once for each rule")
    for name in table:
        if name not in _NAMES:
            raise ValueError(f"{name}: no such option{suggestion(name, _NAMES) or '; there are ' + ', '.join(_NAMES)}")
    named = [name for name in _WHO if name in table]
    if len(named) != 1:
        raise ValueError(f"who is it for? exactly one of {', '.join(_WHO)}, not {len(named)} of them")
    fields: dict[str, Any] = {name: value for name, value in table.items() if name not in ("user", "group")}
    if "user" in table:
        fields["uid"] = _number(table["user"], "user", lambda name: pwd.getpwnam(name).pw_uid)
    if "group" in table:
        fields["gid"] = _number(table["group"], "group", lambda name: grp.getgrnam(name).gr_gid)
    try:
        rule = msgspec.convert(fields, AccessRule)
    except msgspec.ValidationError as error:
        raise ValueError(in_words(error)) from None
    _check(rule, table)
    return rule


def _number(name: object, kind: str, look_up: Any) -> int:  # noqa: ANN401
    if not isinstance(name, str):
        raise ValueError(f"{kind}: expected a name in quotes; a number is {kind[0]}id = {name}")
    try:
        number: int = look_up(name)
    except KeyError:
        raise ValueError(f"{kind}: there is no {kind} {name!r} on this host") from None
    return number


def _check(rule: AccessRule, table: dict[str, Any]) -> None:
    for name in rule.rights:
        if name not in RIGHTS:
            raise ValueError(f"rights: {name!r} is none of {', '.join(RIGHTS)}{suggestion(name, RIGHTS)}")
    if "rights" not in table:
        raise ValueError('rights: which? for example rights = ["read"]; [] is none')
    if OVERFLOW_ID in (rule.uid, rule.gid):
        raise ValueError(f"{OVERFLOW_ID} stands for those whom the kernel cannot name here; it never matches")
    if "everyone" in table and not rule.everyone:
        raise ValueError("everyone: true, or leave it out")
