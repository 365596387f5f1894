"""What is remembered of writes that carried an id, and what is said about those that were forgotten."""

from kvd.store.errors import OutcomeUnknown
from kvd.store.idempotency import IdempotencyCache


def remembering(*ids: bytes, limit: int = 3) -> IdempotencyCache:
    """Each id committed at one version more, the first at 1, answered by its version."""
    outcomes = IdempotencyCache(limit)
    for version, id_ in enumerate(ids, 1):
        outcomes.remember("me", id_, version, version)
    return outcomes


def is_unknown(outcomes: IdempotencyCache, id_: bytes, since: int, version: int) -> bool:
    try:
        outcomes.lookup("me", id_, since, version)
    except OutcomeUnknown as unknown:
        assert unknown.version == version  # noqa: PT017 (the error is one of two answers here)
        return True
    return False


def test_an_id_that_committed_gets_its_answer_whatever_else_it_says() -> None:
    outcomes = remembering(b"a", b"b")
    for since in (None, 0, 1, 2, 99):
        assert [outcomes.lookup("me", id_, since, 2) for id_ in (b"a", b"b", b"a")] == [1, 2, 1]


def test_an_answer_is_given_as_it_was() -> None:
    outcomes = IdempotencyCache(2)
    for id_, answer in ((b"a", [False]), (b"b", [])):
        outcomes.remember("me", id_, 1, answer)
        assert outcomes.lookup("me", id_, 0, 1) is answer


def test_an_id_never_seen_has_not_committed_while_nothing_was_forgotten() -> None:
    outcomes = remembering(b"a", b"b", b"c")
    assert not any(is_unknown(outcomes, b"new", since, 3) for since in (0, 1, 2, 3))


def test_the_oldest_is_forgotten_past_the_limit() -> None:
    outcomes = remembering(b"a", b"b", b"c", b"d", b"e", limit=3)
    assert len(outcomes) == 3
    assert [outcomes.lookup("me", id_, 2, 5) for id_ in (b"a", b"b", b"c", b"d", b"e")] == [None, None, 3, 4, 5]


def test_with_a_since_before_the_last_forgotten_id_the_outcome_is_unknown() -> None:
    outcomes = remembering(b"a", b"b", b"c", b"d", b"e", limit=3)
    assert [is_unknown(outcomes, b"b", since, 5) for since in range(6)] == [True, True, False, False, False, False]


def test_ids_that_were_made_at_the_version_of_a_forgotten_write_came_after_it() -> None:
    """A write with such an id committed later than at that version, or not at all."""
    outcomes = remembering(b"a", b"b", limit=1)
    assert is_unknown(outcomes, b"a", 0, 2)
    assert outcomes.lookup("me", b"new", 1, 2) is None


def test_with_a_since_that_this_store_never_had_the_outcome_is_unknown() -> None:
    outcomes = remembering(b"a")
    assert not is_unknown(outcomes, b"new", 1, 1)
    assert is_unknown(outcomes, b"new", 2, 1)


def test_without_since_a_forgotten_id_is_like_a_new_one() -> None:
    outcomes = remembering(b"a", b"b", limit=1)
    assert outcomes.lookup("me", b"a", None, 2) is None


def test_who_chose_the_id_belongs_to_it() -> None:
    outcomes = IdempotencyCache(5)
    outcomes.remember(1000, b"a", 1, "mine")
    outcomes.remember(None, b"a", 2, "theirs")
    assert [outcomes.lookup(scope, b"a", 0, 2) for scope in (1000, None, 1001)] == ["mine", "theirs", None]


def test_with_a_limit_of_zero_no_answer_is_remembered_and_outcomes_are_unknown() -> None:
    outcomes = remembering(b"a", b"b", limit=0)
    assert len(outcomes) == 0
    assert is_unknown(outcomes, b"b", 1, 2)
    assert outcomes.lookup("me", b"b", 2, 2) is None


def test_a_lowered_limit_applies_from_the_next_write_on() -> None:
    outcomes = remembering(b"a", b"b", b"c", limit=3)
    outcomes.limit = 1
    outcomes.remember("me", b"d", 4, 4)
    assert len(outcomes) == 1
    assert [is_unknown(outcomes, b"new", since, 4) for since in (2, 3)] == [True, False]


def test_a_raised_limit_brings_no_answer_back() -> None:
    outcomes = remembering(b"a", b"b", limit=1)
    outcomes.limit = 5
    outcomes.remember("me", b"c", 3, 3)
    assert is_unknown(outcomes, b"a", 0, 3)
    assert outcomes.lookup("me", b"b", 0, 3) == 2


def test_ids_of_one_batch_are_forgotten_one_by_one() -> None:
    outcomes = IdempotencyCache(2)
    for id_ in (b"a", b"b", b"c"):
        outcomes.remember("me", id_, 7, id_)
    assert [outcomes.lookup("me", id_, 7, 7) for id_ in (b"a", b"b", b"c")] == [None, b"b", b"c"]
    assert is_unknown(outcomes, b"a", 6, 7)


def test_long_answers_count_for_more_than_one() -> None:
    """A touch of 65,536 keys has an answer with as many elements, so it must count for more than a version."""
    outcomes = IdempotencyCache(10)
    for number in range(3):
        outcomes.remember(0, bytes([number]) * 16, number + 1, [True] * 64)
    assert len(outcomes) == 2
    assert outcomes.lookup(0, bytes([2]) * 16, 0, 3) == [True] * 64


def test_an_unknown_outcome_stays_unknown_whatever_is_forgotten_later() -> None:
    outcomes = remembering(b"a", b"b", limit=2)
    outcomes.forget_through(5)
    outcomes.forget_through(4)
    assert [is_unknown(outcomes, b"new", since, 9) for since in (0, 4, 5)] == [True, True, False]
    assert outcomes.lookup("me", b"a", 0, 9) == 1, "what is known is known"
    outcomes.remember("me", b"c", 6, 6)
    assert [is_unknown(outcomes, b"new", since, 9) for since in (1, 4, 5)] == [True, True, False]


def test_a_long_answer_counts_as_several_short_ones() -> None:
    outcomes = IdempotencyCache(10)
    for number in range(5):
        outcomes.remember("me", bytes([number]), number + 1, number)
    outcomes.remember("me", b"long", 6, [True] * (16 * 7))
    assert len(outcomes) == 3
    outcomes.remember("me", b"longer than all", 7, [True] * 16 * 10)
    assert len(outcomes) == 0
    assert is_unknown(outcomes, b"longer than all", 6, 7)
    for number in range(20):
        outcomes.remember("me", bytes([number]), number + 8, number)
    assert len(outcomes) == 10, "forgotten answers do not count"
