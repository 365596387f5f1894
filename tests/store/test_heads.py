"""A chain of heads: what is read at which version."""

import gc

from kvd.store.heads import Head


def chain(*versions: int) -> Head:
    """Heads of one key, the newest in front; the value names the version."""
    head = None
    for version in versions:
        head = Head("k", b"%d" % version, version, head)
    assert head is not None
    return head


def test_a_chain_is_read_at_the_newest_version_not_above_the_one_asked_for() -> None:
    newest = chain(2, 4, 9)
    found = {version: head.version if (head := newest.at(version)) else None for version in range(12)}
    assert found == {0: None, 1: None, 2: 2, 3: 2, **dict.fromkeys(range(4, 9), 4), 9: 9, 10: 9, 11: 9}


def test_a_tombstone_is_found_like_any_other_version() -> None:
    tombstone = Head("k", None, 7, chain(3))
    assert tombstone.at(8) is tombstone
    assert tombstone.at(6) is tombstone.previous


def test_a_head_without_a_value_is_still_true() -> None:
    """The store takes "no head is missing" for "all are true"."""
    assert all([Head("", None, 0, None), Head("k", b"", 1, None)])


def test_the_garbage_collector_never_visits_a_head() -> None:
    assert not gc.is_tracked(chain(1, 2))
