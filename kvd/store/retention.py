"""Values that go before their time: those below prefixes whose history is shorter than the history window.

The window keeps every commit for as long as its limits say, with what it superseded. Below a prefix with a history of
its own, a superseded *value* goes when the commit that superseded it is older than that. What stays, until the window
drops the commit, is that the key was written: version, time and author. So whether a transaction may commit, and what
the log tells, does not depend on this; only a value that is asked for may be gone:

        key a   (FORGOTTEN, 5) ◀─ (FORGOTTEN, 7) ◀─ (value, 8)     reading a at 5, 6 or 7: snapshot_gone
        key b   (value, 4)     ◀─ (value, 9)                       reading b at 4 to 8: its value

A pinned version keeps its values, as in the window. For each age there is one place in the window up to which this has
been done. It moves on as the window's own beginning does, in steps of as many keys as were written or a few more.

What is evicted because memory is short goes at once, whatever its prefix and whoever may still want it (``room.py``).
"""

from collections.abc import Iterable

from kvd.store.heads import FORGOTTEN, Head
from kvd.store.prefixes import NO_RULES, PrefixRules
from kvd.store.window import Group, Window


class Retention:
    """Forgets values of ``window`` as the rules say. Times in microseconds."""

    __slots__ = ("_following", "_rules", "_window")

    def __init__(self, window: Window) -> None:
        self._window = window
        self._rules = NO_RULES
        self._following: dict[int, int] = {}  # age → the number of the group to be looked at next

    def set_rules(self, rules: PrefixRules) -> None:
        """Let these rules hold, also for what there is already; what was forgotten stays so."""
        self._rules = rules
        self._following = {rule.history_ms * 1000: 0 for rule in rules.rules if rule.history_ms}

    def __bool__(self) -> bool:
        """Whether there is any such prefix."""
        return bool(self._following)

    def forget(self, now: int, budget_keys: int) -> int:
        """Forget values that are too old at ``now``, looking at about ``budget_keys`` keys; at how many it did."""
        window, looked = self._window, 0
        for age in self._following:
            number = self._following[age]
            while looked < budget_keys and (following := window.next_from(number)) is not None:
                number, group = following
                if group.time >= now - age or group.heads[-1].version > window.oldest_pinned:
                    break
                self._forget_superseded(group, age)
                number += 1
                looked += len(group.heads)
            self._following[age] = number
        return looked

    def due_at(self) -> int | None:
        """When the next values will be too old; None while there are none that can be."""
        following = [(self._window.next_from(number), age) for age, number in self._following.items()]
        return min((found[1].time + age for found, age in following if found is not None), default=None)

    def forget_evicted(self, group: Group) -> None:
        """Forget what ``group`` has evicted, whoever may still want it: it went to make room."""
        self._forget(group, group.heads)

    def _forget_superseded(self, group: Group, age: int) -> None:
        rule_of = self._rules.rule_of
        ruled = ((head, rule_of(head.key)) for head in group.heads if head.previous is not None)
        self._forget(group, [head for head, rule in ruled if rule is not None and rule.history_ms * 1000 == age])

    def _forget(self, group: Group, heads: Iterable[Head]) -> None:
        """Forget what these heads of ``group`` superseded."""
        freed = 0
        for head in heads:
            old = head.previous
            if old is not None and (value := old.value) is not None and value is not FORGOTTEN:
                freed += len(value)
                old.value = FORGOTTEN
        group.size -= freed
        self._window.bytes -= freed
