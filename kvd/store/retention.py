"""Superseded values that go early: those below prefixes whose history is shorter than the history window.

The window keeps every commit as long as its limits allow, with what the commit superseded. Below a prefix with a
history of its own, a superseded *value* goes when the commit that superseded it is older than that history. Until the
window drops the commit, the fact that the key was written stays: version, time and author. So this affects neither
whether a transaction may commit nor what the log shows. Only a requested value may be gone:

        key a   (FORGOTTEN, 5) ◀─ (FORGOTTEN, 7) ◀─ (value, 8)     reading a at 5, 6 or 7: snapshot_gone
        key b   (value, 4)     ◀─ (value, 9)                       reading b at 4 to 8: its value

A pinned version keeps its values, as in the window. For each age, one position in the window says up to which group
values have been forgotten. It advances as the window's own beginning does, in steps of as many keys as were written or
a few more.

Values that are evicted because memory is short go at once, whatever their prefix and even if they are pinned
(``kvd/engine/memory.py``).
"""

from collections.abc import Iterable

from kvd.store.heads import FORGOTTEN, Head
from kvd.store.prefixes import NO_RULES, PrefixRules
from kvd.store.window import Group, Window


class Retention:
    """Forgets values in ``window`` as the rules say. Times are microseconds.

    ``is_active``: whether any prefix has a history of its own.
    """

    __slots__ = ("_following", "_rules", "_window", "is_active")

    def __init__(self, window: Window) -> None:
        self._window = window
        self._rules = NO_RULES
        self._following: dict[int, int] = {}  # age → the number of the next group to visit
        self.is_active = False

    def set_rules(self, rules: PrefixRules) -> None:
        """Apply these rules, also to existing commits; forgotten values stay forgotten."""
        self._rules = rules
        self._following = {rule.history_ms * 1000: 0 for rule in rules.rules if rule.history_ms}
        self.is_active = bool(self._following)

    def forget(self, now: int, budget_keys: int) -> int:
        """Forget values that are too old at ``now``, visiting about ``budget_keys`` keys; return the number."""
        window, visited = self._window, 0
        for age in self._following:
            number = self._following[age]
            while visited < budget_keys and (following := window.next_from(number)) is not None:
                number, group = following
                if window.present_time(group) >= now - age or group.heads[-1].version > window.oldest_pinned:
                    break
                self._forget_superseded(group, age)
                number += 1
                visited += len(group.heads)
            self._following[age] = number
        return visited

    def due_at(self) -> int | None:
        """Return when the next values will be too old; None if no value can be."""
        window = self._window
        following = [(window.next_from(number), age) for age, number in self._following.items()]
        return min((window.present_time(found[1]) + age for found, age in following if found is not None), default=None)

    def awaits_commit(self) -> bool:
        """Whether all commits were visited for some prefix, so for it the next commit is the next one to be due."""
        return any(self._window.next_from(number) is None for number in self._following.values())

    def forget_evicted(self, group: Group) -> None:
        """Forget the values that ``group`` evicted, even if they are pinned: they were evicted to free memory."""
        self._forget(group, group.heads)

    def _forget_superseded(self, group: Group, age: int) -> None:
        rule_of = self._rules.rule_of
        ruled = ((head, rule_of(head.key)) for head in group.heads if head.previous is not None)
        self._forget(group, [head for head, rule in ruled if rule is not None and rule.history_ms * 1000 == age])

    def _forget(self, group: Group, heads: Iterable[Head]) -> None:
        """Forget the values that these heads of ``group`` superseded."""
        freed = 0
        for head in heads:
            old = head.previous
            if old is not None and (value := old.value) is not None and value is not FORGOTTEN:
                freed += 0 if group.keeps else len(value)
                old.value = FORGOTTEN
        group.size -= freed
        self._window.bytes -= freed
