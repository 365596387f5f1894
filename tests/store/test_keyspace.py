"""The keyspace: a first dict, shards for further keys, and no key ever in two of them."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvd.store import keyspace as keyspace_module
from kvd.store.heads import Head
from kvd.store.keyspace import KEY_BYTES, Keyspace
from kvd.store.sharded import SHARDS

FIRST_KEYS = 3
ACTS = ["put", "add_all", "replace_all", "remove", "remove_all"]


@pytest.fixture(autouse=True, scope="module")
def small_first() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keyspace_module, "FIRST_KEYS", FIRST_KEYS)
        yield


def put(keyspace: Keyspace, key: str, version: int = 1) -> Head:
    head = Head(key, b"", version, None)
    keyspace.dict_for(key)[key] = head
    return head


def test_new_keys_go_to_the_first_dict_until_it_is_full() -> None:
    keyspace = Keyspace()
    for key in "abcdefg":
        put(keyspace, key)
    assert list(keyspace.first) == ["a", "b", "c"]
    assert (len(keyspace), sorted(keyspace)) == (7, list("abcdefg"))


def test_a_key_stays_in_its_shard_though_the_first_dict_has_space_again() -> None:
    keyspace = Keyspace()
    for key in "abcd":
        put(keyspace, key)
    keyspace.remove("a")
    newer = put(keyspace, "d", 2)
    assert keyspace.find("d") is newer
    assert "d" not in keyspace.first
    assert (len(keyspace), keyspace.find("a")) == (3, None)


def test_the_parts_together_hold_every_key_once() -> None:
    keyspace = Keyspace()
    for number in range(100):
        put(keyspace, str(number))
    parts = keyspace.parts()
    assert len(parts) == SHARDS + 1
    assert sorted(key for part in parts for key in part) == sorted(map(str, range(100)))
    assert sum(map(bool, parts)) > SHARDS // 4, "the shards share the keys"


def test_superseded_heads_are_not_removed() -> None:
    keyspace = Keyspace()
    heads = [put(keyspace, key) for key in "abcdef"]
    keyspace.count_new("abcdef")
    newer = [put(keyspace, key, 2) for key in "af"]
    assert keyspace.remove_all(heads) == list("bcde")
    assert sorted(keyspace) == ["a", "f"]
    assert keyspace.find_all("abf") == [newer[0], None, newer[1]]
    assert keyspace.bytes == 2 * (KEY_BYTES + 1)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sets(st.sampled_from("abcdefgh"), min_size=1), st.sampled_from(ACTS)), max_size=60))
def test_the_keyspace_is_a_dict(work: list[tuple[set[str], str]]) -> None:
    keyspace, model = Keyspace(), dict[str, Head]()
    for keys, act in work:
        new, known = sorted(keys - model.keys()), sorted(keys & model.keys())
        assert keyspace.has_in_shards(keys) == any(key not in keyspace.first for key in known)
        if act == "put":
            model.update((key, put(keyspace, key)) for key in sorted(keys))
        elif act == "add_all":
            heads = [Head(key, b"", 1, None) for key in new]
            keyspace.add_all(heads)
            model.update(zip(new, heads, strict=True))
        elif act == "replace_all":
            heads = [Head(key, b"", 2, None) for key in known]
            keyspace.replace_all(heads)
            model.update(zip(known, heads, strict=True))
        elif act == "remove":
            for key in known:
                keyspace.remove(key)
                del model[key]
        elif act == "remove_all":
            assert keyspace.remove_all([model.pop(key) for key in known]) == known
        assert len(keyspace.first) <= FIRST_KEYS
        assert len(keyspace) == len(model)
    assert sorted(keyspace) == sorted(model)
    assert all(keyspace.find(key) is model.get(key) for key in "abcdefgh")
    assert keyspace.find_all("abcdefgh") == list(map(model.get, "abcdefgh"))
