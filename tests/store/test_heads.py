"""A chain of heads: which head a read at a version finds."""

import gc

from kvd.store.heads import Head


def chain(*versions: int) -> Head:
    """Return a chain of heads of one key; each value names its version."""
    head = None
    for version in versions:
        head = Head("k", b"%d" % version, version, head)
    assert head is not None
    return head


def test_a_chain_is_read_at_the_newest_version_at_or_below_the_requested_one() -> None:
    newest = chain(2, 4, 9)
    found = {version: head.version if (head := newest.at(version)) else None for version in range(12)}
    assert found == {0: None, 1: None, 2: 2, 3: 2, **dict.fromkeys(range(4, 9), 4), 9: 9, 10: 9, 11: 9}


def test_a_tombstone_is_found_like_any_other_version() -> None:
    tombstone = Head("k", None, 7, chain(3))
    assert tombstone.at(8) is tombstone
    assert tombstone.at(6) is tombstone.previous


def test_a_head_without_a_value_is_true() -> None:
    """The store tests "no head is missing" by "all are true"."""
    assert all([Head("", None, 0, None), Head("k", b"", 1, None)])


def test_the_garbage_collector_never_visits_a_head() -> None:
    assert not gc.is_tracked(chain(1, 2))
