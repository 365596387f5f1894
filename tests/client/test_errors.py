"""The client's errors: what a caller may conclude from each."""

import pytest

import kv
from kv.errors import ConnectionLost, KvdError, NotFound, Refused, TimedOut, Unavailable, from_reply
from kvd.protocol.errors import CODES

KINDS = {
    "not_found": kv.NotFound, "forbidden": kv.Forbidden, "unauthenticated": kv.Forbidden,
    "snapshot_gone": kv.SnapshotGone, "busy": kv.Busy, "conflict": kv.Conflict, "not_a_number": kv.NotANumber,
    "outcome_unknown": kv.CommitUnknown,
}  # fmt: skip


@pytest.mark.parametrize("code", CODES)
def test_each_code_becomes_an_error_with_the_right_conclusions(code: str) -> None:
    error = from_reply({"error": code, "message": "why", "more": 1})
    assert type(error) is KINDS.get(code, kv.Refused)
    assert isinstance(error, Refused) != (code == "outcome_unknown")
    assert (str(error), error.message, error.code, error.fields) == ("why", "why", code, {"more": 1})
    assert (error.retryable, error.maybe_committed) == (CODES[code].retryable, CODES[code].maybe_applied)


@pytest.mark.parametrize(
    "reply", [{}, {"error": None}, {"error": "new_in_version_9"}, {"error": 1, "message": b"x"}], ids=str
)
def test_an_unknown_code_becomes_refused_and_is_not_retryable(reply: dict[str, object]) -> None:
    error = from_reply(reply)
    assert type(error) is Refused
    assert (error.retryable, error.maybe_committed) == (False, False)
    assert error.message


def test_not_found_names_the_keys() -> None:
    assert NotFound("", "not_found", {"keys": ["a", "b"]}).keys == ["a", "b"]
    assert NotFound("", "not_found").keys == NotFound("", "not_found", {"keys": 1}).keys == []


@pytest.mark.parametrize("kind", [ConnectionLost, TimedOut])
def test_a_lost_read_is_retryable_and_a_lost_write_may_be_committed(kind: type[ConnectionLost]) -> None:
    assert (kind("", writing=False).retryable, kind("", writing=False).maybe_committed) == (True, False)
    assert (kind("", writing=True).retryable, kind("", writing=True).maybe_committed) == (False, True)


def test_unavailable_has_the_addresses_that_were_tried() -> None:
    error = Unavailable("no daemon", ["/a", "/b"])
    assert (error.tried, error.retryable, error.maybe_committed, error.code) == (
        ["/a", "/b"],
        True,
        False,
        "unavailable",
    )


def test_all_are_kvd_errors_and_timeouts_are_lost_connections() -> None:
    kinds = [value for name in kv.__all__ if isinstance(value := getattr(kv, name), type)]
    assert sum(issubclass(kind, Exception) for kind in kinds) > 10
    assert all(issubclass(kind, KvdError) for kind in kinds if issubclass(kind, Exception))
    assert issubclass(TimedOut, ConnectionLost)
    assert not issubclass(Unavailable, ConnectionLost), "nothing was sent"
