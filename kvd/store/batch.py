"""The fast paths of commits: many keys at once, column by column.

The reference path (``Contents._commit_key_by_key``) makes one commit, key by key, and is correct for all writes in
every state. Each function here leaves the keyspace as a sequence of such commits does, but fits only some writes and
states. In return its loops run in C:

    function        commits         fits
    write_all       one             keys that are in ``first``, or new with space for them there
    delete_heads    one             keys that the caller chose by their current heads
    write_each      one a key       any keys: it takes the quickest of these three that fits
      _replace_each                   all different, all in ``first`` with a value
      _add_each                       all different, all absent
      _link_each                      anything else, also one key several times

These functions count nothing: they return what ``Contents._account`` needs for that.
``tests/store/test_commit_paths.py`` compares each of them with the reference path on random states and writes.
"""

from collections.abc import Mapping, Sequence
from itertools import repeat

from kvd.store.heads import Head
from kvd.store.keyspace import Keyspace

# The new heads in commit order; those of their keys that are new; the number of superseded values, and their bytes.
Written = tuple[tuple[Head, ...], Sequence[str], int, int]


def write_all(
    keyspace: Keyspace, writes: Mapping[str, bytes | None], previous: list[Head | None], version: int
) -> Written | None:
    """Give each key its value of ``version`` (None: a tombstone); ``previous`` are the keys' heads in ``first``.

    Returns None, with nothing changed, if this path does not fit.
    """
    first = keyspace.first
    new: Sequence[str] = ()
    # Keep the key objects that the keyspace has; those of the request can be freed with the request.
    if all(previous):  # as heads are always true, none of them is missing
        keys = [old.key for old in previous]  # type: ignore[union-attr]
    elif len(first) + len(writes) <= keyspace.first_keys and not keyspace.is_sharded:
        keys = [key if old is None else old.key for key, old in zip(writes, previous, strict=True)]
        new = [key for key, old in zip(keys, previous, strict=True) if old is None]
    else:
        return None
    heads = tuple(map(Head, keys, writes.values(), repeat(version), previous))
    first.update(zip(keys, heads, strict=True))
    superseded = [len(value) for old in previous if old is not None and (value := old.value) is not None]
    return heads, new, len(superseded), sum(superseded)


def delete_heads(keyspace: Keyspace, keys: Sequence[str], heads: Sequence[Head], version: int) -> Written:
    """Give ``keys`` a tombstone of ``version``; ``heads`` are theirs: current, all different, each with a value."""
    tombstones = tuple(map(Head, keys, repeat(None), repeat(version), heads))
    keyspace.replace_all(tombstones)
    return tombstones, (), len(heads), sum([len(head.value) for head in heads])  # type: ignore[misc, arg-type]


def write_each(keyspace: Keyspace, keys: list[str], values: list[bytes], versions: list[int]) -> Written:
    """Give each of ``keys`` its value in a commit of its own, at its version; the versions are consecutive."""
    if len(set(keys)) == len(keys):
        previous = list(map(keyspace.first.get, keys))
        if all(previous):  # as heads are always true, none of them is missing
            replaced = [head.value for head in previous]  # type: ignore[union-attr]
            if all(replaced) or None not in replaced:
                return _replace_each(keyspace, keys, values, versions, previous, replaced)  # type: ignore[arg-type]
        elif not any(previous) and not keyspace.has_in_shards(keys):
            return _add_each(keyspace, keys, values, versions)
    return _link_each(keyspace, keys, values, versions)


def _replace_each(
    keyspace: Keyspace,
    keys: list[str],
    values: list[bytes],
    versions: list[int],
    previous: list[Head],
    replaced: list[bytes],
) -> Written:
    """Replace values: what most batches do. ``previous`` are the keys' heads, ``replaced`` the values of these."""
    heads = tuple(map(Head, [head.key for head in previous], values, versions, previous))
    keyspace.first.update(zip(keys, heads, strict=True))
    return heads, (), len(heads), sum(map(len, replaced))


def _add_each(keyspace: Keyspace, keys: list[str], values: list[bytes], versions: list[int]) -> Written:
    heads = tuple(map(Head, keys, values, versions, repeat(None)))
    keyspace.add_all(heads)
    return heads, keys, 0, 0


def _link_each(keyspace: Keyspace, keys: list[str], values: list[bytes], versions: list[int]) -> Written:
    """Chain the heads of each key: a later head of the batch supersedes an earlier one of the same key."""
    heads, first = list[Head](), keyspace.first
    latest = dict(zip(keys, map(first.get, keys), strict=True))
    elsewhere = [key for key, head in latest.items() if head is None]
    latest.update((key, keyspace.find(key)) for key in elsewhere)
    new = [key for key in elsewhere if latest[key] is None]
    for key, value, version in zip(keys, values, versions, strict=True):
        old = latest[key]
        latest[key] = head = Head(key if old is None else old.key, value, version, old)
        heads.append(head)
    keyspace.put_all([last for key in elsewhere if (last := latest.pop(key)) is not None])
    first.update(latest)  # type: ignore[arg-type]
    superseded = [len(old.value) for head in heads if (old := head.previous) is not None and old.value is not None]
    return tuple(heads), new, len(superseded), sum(superseded)
