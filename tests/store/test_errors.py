"""The store's refusals carry the fields from which a message is built."""

import pytest

from kvd.store.errors import (
    Change,
    Conflict,
    KeysNotFound,
    NotANumber,
    OutcomeUnknown,
    SnapshotGone,
    StoreError,
    VersionAhead,
)

CHANGES = [Change("a", 1, 2, None, None)]


@pytest.mark.parametrize(
    ("error", "fields"),
    [
        (KeysNotFound(["a", "b"]), {"keys": ["a", "b"]}),
        (SnapshotGone(3, 7), {"version": 3, "oldest_readable": 7, "key": None}),
        (SnapshotGone(3, 7, "k"), {"version": 3, "oldest_readable": 7, "key": "k"}),
        (SnapshotGone(None, 7), {"version": None, "oldest_readable": 7, "key": None}),
        (Conflict(CHANGES), {"changes": CHANGES}),
        (NotANumber("a", "why"), {"key": "a", "reason": "why"}),
        (OutcomeUnknown(7), {"version": 7}),
        (VersionAhead(9, 7), {"version": 9, "newest": 7}),
    ],
)
def test_a_refusal_carries_its_fields(error: StoreError, fields: dict[str, object]) -> None:
    assert isinstance(error, StoreError)
    assert vars(error) == fields
