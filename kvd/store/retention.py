"""Values that go before their time: those below prefixes whose history is shorter than the history window.

The window keeps every commit for as long as its limits say, with what it superseded. Below a prefix with a history of
its own, a superseded *value* goes when the commit that superseded it is older than that. What stays, until the window
drops the commit, is that the key was written: version, time and author. So whether a transaction may commit, and what
the log tells, does not depend on this; only a value that is asked for may be gone:

        key a   (FORGOTTEN, 5) ◀─ (FORGOTTEN, 7) ◀─ (value, 8)     reading a at 5, 6 or 7: snapshot_gone
        key b   (value, 4)     ◀─ (value, 9)                       reading b at 4 to 8: its value

A pinned version keeps its values, as in the window. For each age there is one place in the window up to which this has
been done. It moves on as the window's own end does, in steps of as many keys as were written or a few more.
"""

from collections.abc import Iterator

from kvd.store.heads import FORGOTTEN
from kvd.store.prefixes import NO_RULES, PrefixRules
from kvd.store.window import Group, Window


class Retention:
    """Forgets values of ``window`` as the rules say. Times in microseconds."""

    __slots__ = ("_done", "_rules", "_window")

    def __init__(self, window: Window) -> None:
        self._window = window
        self._rules = NO_RULES
        self._done: dict[int, int] = {}  # age → the version up to which what is older has been forgotten

    def set_rules(self, rules: PrefixRules) -> None:
        """Let these rules hold, also for what there is already; what was forgotten stays so."""
        self._rules = rules
        self._done = {rule.history_ms * 1000: 0 for rule in rules.rules if rule.history_ms}

    def __bool__(self) -> bool:
        """Whether there is any such prefix."""
        return bool(self._done)

    def forget(self, now: int, budget_keys: int) -> int:
        """Forget values that are too old at ``now``, looking at about ``budget_keys`` keys; at how many it did."""
        looked, pinned = 0, self._window.oldest_pinned
        for age in self._done:
            for group in self._behind(age):
                last = group.heads[-1].version
                if looked >= budget_keys or group.time >= now - age or last > pinned:
                    break
                self._forget_superseded(group, age)
                self._done[age] = last
                looked += len(group.heads)
        return looked

    def due_at(self) -> int | None:
        """When the next values will be too old; None while there are none that can be."""
        waiting = [(next(self._behind(age), None), age) for age in self._done]
        return min((group.time + age for group, age in waiting if group is not None), default=None)

    def _behind(self, age: int) -> Iterator[Group]:
        """The groups that have not been looked at for ``age``."""
        return self._window.after(max(self._done[age], self._window.oldest_readable))

    def _forget_superseded(self, group: Group, age: int) -> None:
        freed = 0
        for head in group.heads:
            old = head.previous
            if old is not None and (value := old.value) is not None and value is not FORGOTTEN:
                rule = self._rules.rule_of(head.key)
                if rule is not None and rule.history_ms * 1000 == age:
                    freed += len(value)
                    old.value = FORGOTTEN
        group.size -= freed
        self._window.bytes -= freed
