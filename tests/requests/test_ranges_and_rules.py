"""The right to a range: the answer of one binary search beside that of a look at every rule."""

import random

from kvd.protocol.ranges import prefix_end
from kvd.requests.access import READ, RIGHTS, WRITE, Access, AccessRule, Identity

ROUNDS = 3_000
ALPHABET = ["a", "b", "\ud7ff", "\ue000", "\U0010ffff"]
WHO = Identity(uid=5)


def by_every_rule(by_prefix: dict[str, int], right: int, start: str, end: str | None) -> bool:
    """Each prefix that decides about a possible key of the range has to give the right."""
    if end is not None and end <= start:
        return True

    def holds(prefix: str) -> bool:
        last = prefix_end(prefix)
        return start.startswith(prefix) and (last is None or (end is not None and end <= last))

    around = max((prefix for prefix in by_prefix if holds(prefix)), key=len, default=None)
    if around is None or not by_prefix[around] & right:
        return False

    def meets(prefix: str) -> bool:
        last = prefix_end(prefix)
        return (last is None or last > start) and (end is None or prefix < end)

    inner = [prefix for prefix in by_prefix if len(prefix) > len(around) and prefix.startswith(around)]
    return all(by_prefix[prefix] & right for prefix in inner if meets(prefix))


def test_the_right_to_a_range_is_that_to_every_key_of_it() -> None:
    chosen = random.Random(1)  # noqa: S311 - to be repeatable
    answers = {True: 0, False: 0}

    def text() -> str:
        return "".join(chosen.choices(ALPHABET, k=chosen.randrange(5)))

    for _ in range(ROUNDS):
        rules = [
            AccessRule(prefix=text(), rights=tuple(name for name in RIGHTS if chosen.random() < 0.7), uid=5)
            for _ in range(chosen.randrange(1, 9))
        ]
        by_prefix: dict[str, int] = {}
        for rule in rules:
            by_prefix[rule.prefix] = by_prefix.get(rule.prefix, 0) | rule.bits
        grant = Access(rules).grant(WHO)
        for _ in range(20):
            start, end = text(), chosen.choice([None, text(), text()])
            for right in (READ, WRITE):
                expected = by_every_rule(by_prefix, right, start, end)
                assert grant.may_range(right, start, end) == expected, (by_prefix, right, start, end)
                answers[expected] += 1
    assert min(answers.values()) > ROUNDS, answers
