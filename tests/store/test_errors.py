"""The store's refusals carry what a message is made of."""

import pytest

from kvd.store.errors import KeysNotFound, SnapshotGone, StoreError, VersionAhead


@pytest.mark.parametrize(
    ("error", "fields"),
    [
        (KeysNotFound(["a", "b"]), {"keys": ["a", "b"]}),
        (SnapshotGone(3, 7), {"version": 3, "oldest_readable": 7}),
        (VersionAhead(9, 7), {"version": 9, "newest": 7}),
    ],
)
def test_a_refusal_carries_its_fields(error: StoreError, fields: dict[str, object]) -> None:
    assert isinstance(error, StoreError)
    assert vars(error) == fields
