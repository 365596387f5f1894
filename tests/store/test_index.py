"""The ordered index against sorted(set), with blocks so small that each way of splitting and emptying them is taken."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvd.store import index as index_module
from kvd.store.index import OrderedIndex

BLOCK_KEYS = 4
RESORT_KEYS = 3
# Characters on both sides of the seam between the planes, where UTF-16 sorts differently, and of the surrogates.
LETTERS = "ab\x7f\x80\u07ff\u0800\ud7ff\ue000\uffff\U00010000\U0010ffff"
KEYS = st.text(LETTERS, max_size=3)


@pytest.fixture(autouse=True, scope="module")
def small_blocks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_module, "BLOCK_KEYS", BLOCK_KEYS)
        patch.setattr(index_module, "_RESORT_KEYS", RESORT_KEYS)
        yield


def blocks_are_sound(index: OrderedIndex) -> bool:
    """Check what the binary searches rely on."""
    blocks, lasts = index._blocks, index._lasts
    return [block[-1] for block in blocks] == lasts and all(len(block) <= 2 * BLOCK_KEYS for block in blocks)


def filled(*keys: str) -> OrderedIndex:
    index = OrderedIndex()
    for key in keys:
        index.add(key)
    return index


def test_an_empty_index_has_no_key_in_any_range() -> None:
    assert list(OrderedIndex().range("", None)) == []
    assert len(OrderedIndex()) == OrderedIndex().pending == 0


def test_notes_wait_until_a_range_is_read() -> None:
    index = filled("b", "a")
    assert (index.pending, len(index)) == (2, 2)
    assert list(index.range("", None)) == ["a", "b"]
    assert (index.pending, len(index)) == (0, 2)


def test_adding_and_discarding_before_a_flush_cancel_each_other() -> None:
    index = filled("a")
    index.discard("a")
    assert (index.pending, list(index.range("", None))) == (0, [])
    index.add("a")
    index.flush()
    index.discard("a")
    index.add("a")
    assert (index.pending, list(index.range("", None))) == (0, ["a"])


def test_many_notes_at_once_cancel_each_other() -> None:
    index = filled("c")
    index.flush()
    index.add_all(["b", "a"])
    index.discard_all(["c", "b"])
    assert index.pending == 2
    index.add_all(["c", "d"])
    assert (index.pending, list(index.range("", None))) == (2, ["a", "c", "d"])


def test_a_range_begins_with_its_start_and_ends_before_its_end() -> None:
    index = filled(*"abcdefghijklmnop")
    assert "".join(index.range("c", "m")) == "cdefghijkl"
    assert "".join(index.range("c", "c")) == ""
    assert "".join(index.range("m", "c")) == ""
    assert "".join(index.range("bb", "dd")) == "cd"
    assert "".join(index.range("x", None)) == ""
    assert "".join(index.range("", "zz")) == "abcdefghijklmnop"


def test_the_order_is_that_of_the_utf8_bytes_beyond_the_basic_plane_too() -> None:
    keys = ["\uffff", "\U00010000", "\ue000", "z", "é", "\ud7ff"]
    assert list(filled(*keys).range("", None)) == sorted(keys, key=str.encode)
    assert sorted(keys, key=str.encode) != sorted(keys, key=lambda key: key.encode("utf-16-be"))


def test_an_emptied_block_is_removed() -> None:
    index = filled(*map(str, range(1000, 1040)))
    index.flush()
    for key in range(1010, 1030):
        index.discard(str(key))
    assert list(index.range("", None)) == [str(key) for key in (*range(1000, 1010), *range(1030, 1040))]
    for key in (*range(1000, 1010), *range(1030, 1040)):
        index.discard(str(key))
    index.flush()
    assert (index._blocks, index._lasts, len(index)) == ([], [], 0)


batches = st.lists(st.tuples(st.booleans(), st.sets(KEYS, max_size=25), st.sets(KEYS, max_size=25)), max_size=8)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(batches, st.lists(st.tuples(KEYS, st.none() | KEYS), max_size=4))
def test_the_index_is_a_sorted_set(
    work: list[tuple[bool, set[str], set[str]]], ranges: list[tuple[str, str | None]]
) -> None:
    index, model = OrderedIndex(), set[str]()
    for adding, keys, together in work:
        many = together - keys
        for key in sorted(keys - model if adding else keys & model):
            (index.add if adding else index.discard)(key)
        (index.add_all if adding else index.discard_all)(sorted(many - model if adding else many & model))
        model = model | many if adding else model - many
        model = model | keys if adding else model - keys
        assert len(index) == len(model)
        if len(keys) % 2:  # now and then, so that notes also pile up
            index.flush()
            assert blocks_are_sound(index)
    for start, end in ranges:
        assert list(index.range(start, end)) == sorted(
            key for key in model if start <= key and (end is None or key < end)
        )
    assert list(index.range("", None)) == sorted(model, key=str.encode)
    assert blocks_are_sound(index)
    assert index.pending == 0
