"""The table of requests: it agrees with the rules that it replaced, and the documentation agrees with it."""

import pathlib
import random
import re
from collections.abc import Callable
from typing import Any, get_args

import pytest

from kvd.protocol import messages as m
from kvd.requests import permissions, reply_size, table
from kvd.requests.access import ADMINISTER, CACHE, Access, AccessRule, Identity
from kvd.requests.reads import ReadHandlers
from kvd.requests.table import TABLE, ReplySize, Row, Shows
from tests.requests import reference_rules as reference

ROUNDS = 3_000
PROTOCOL_TEXT = (pathlib.Path(__file__).parents[2] / "docs/protocol.md").read_text()
KINDS = list(get_args(m.AnyRequest))
NAMES = ["a", "ab", "b", "team/x", "z"]
RIGHTS = ("read", "write", "watch", "cache", "administer")


def random_request(kind: type[m.Request], chosen: random.Random) -> Any:  # noqa: ANN401 - one of the kinds
    """A request of this kind with keys out of NAMES."""

    def key() -> str:
        return chosen.choice(NAMES)

    def keys() -> list[str]:
        return [key() for _ in range(chosen.randrange(1, 3))]

    end, at = chosen.choice([None, *NAMES]), chosen.choice([None, 3])
    makers: dict[type[m.Request], Callable[[], m.Request]] = {
        m.Hello: lambda: m.Hello(1, "x"),
        m.Get: lambda: m.Get(key()),
        m.GetMany: lambda: m.GetMany(keys(), at),
        m.Fetch: lambda: m.Fetch(keys(), at),
        m.Set: lambda: m.Set(dict.fromkeys(keys(), b"1")),
        m.Delete: lambda: m.Delete(keys()),
        m.Increment: lambda: m.Increment(key(), 1),
        m.Commit: lambda: m.Commit(
            dict.fromkeys(keys()), chosen.choice([None, {key(): 1}]), chosen.choice([None, [(key(), end)]]), 1
        ),
        m.End: lambda: m.End(1),
        m.Scan: lambda: m.Scan(chosen.choice(["", key()]), end, 5),
        m.Touch: lambda: m.Touch(keys(), 5),
        m.Ttl: lambda: m.Ttl(keys()),
        m.History: lambda: m.History(key(), 5),
        m.Log: lambda: m.Log(None, 5),
        m.VersionAt: lambda: m.VersionAt(1),
        m.Watch: lambda: m.Watch(chosen.choice(["", *NAMES])),
        m.Access: lambda: m.Access(key()),
        m.SlowLog: lambda: m.SlowLog(1),
        m.Largest: lambda: m.Largest(chosen.choice(["", key()]), 1),
        m.Hottest: lambda: m.Hottest("reads", 1),
    }
    return makers.get(kind, kind)()


def random_rules(chosen: random.Random) -> list[AccessRule]:
    return [
        AccessRule(
            prefix=chosen.choice(["", "a", "team/", "z"]),
            rights=tuple(right for right in RIGHTS if chosen.random() < 0.5),
            everyone=True,
        )
        for _ in range(chosen.randrange(1, 4))
    ]


def test_each_kind_of_request_has_one_row() -> None:
    assert set(TABLE) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__struct_config__.tag)
def test_the_table_agrees_with_the_rules_that_it_replaced(kind: type[m.Request]) -> None:
    chosen = random.Random(1)  # noqa: S311  # to be repeatable
    for _ in range(ROUNDS):
        request, grant = random_request(kind, chosen), Access(random_rules(chosen)).grant(Identity(uid=5))
        assert table.is_costly(request) == reference.is_costly(request)
        assert table.sees_all(request) == reference.sees_all(request)
        assert list(table.written_keys(request)) == list(reference.written_keys(request))
        assert list(table.named_keys(request)) == list(reference.named_keys(request))
        assert list(table.quoted_keys(request)) == list(reference.quoted_keys(request))
        may_run = reference.may_run(request, grant)
        if kind in reference.ADMINISTRATIVE:
            may_run = grant.has(ADMINISTER)
        elif kind is m.Attach:
            may_run = grant.has(CACHE)
        assert permissions.permits(request, grant) == may_run


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__struct_config__.tag)
def test_the_properties_of_a_kind_agree_with_the_sets_that_they_replaced(kind: type[m.Request]) -> None:
    row = TABLE[kind]
    assert (row.shows is Shows.NOTHING) == (kind in reference.SHOWS_NOTHING)
    assert (row.shows is Shows.KEYS) == (kind in reference.SHOWS_KEYS)
    assert (row.reply is ReplySize.PAGE) == (kind in reference.PAGES)
    assert (row.reply is ReplySize.FIXED) == (kind in reference.VALUELESS)
    assert (row.reply is ReplySize.FREE) == (kind in reference.UNPREDICTABLE)
    assert row.may_conflict == (kind is m.Commit)
    assert (row.writes is not table.no_keys) == (kind in reference.WRITING)
    assert (row.hot_reads is not table.no_keys) == (kind in reference.SHOWS_KEYS)
    assert (row.right == ADMINISTER) == bool(row.asks_for) == (kind in reference.ADMINISTRATIVE)


class Unknown(m.Request, tag="unknown"):
    """A request of a later version, without a row."""


def test_a_row_without_properties_is_costly_and_of_unpredictable_size(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Row(ReadHandlers.get)
    assert row.cost(Unknown()) > table.CHEAP_US
    assert row.reply is ReplySize.FREE
    assert row.shows is Shows.VERSION


def test_a_kind_without_a_row_is_permitted_to_no_client() -> None:
    everything = Access([AccessRule(everyone=True, rights=RIGHTS)]).grant(Identity(uid=5))
    assert not permissions.permits(Unknown(), everything)  # type: ignore[arg-type]


def test_a_row_whose_handler_no_object_has_is_an_error() -> None:
    with pytest.raises(LookupError, match=r"Authentication\.hello"):
        table.bind_handlers(object())


def test_replies_of_unpredictable_size_are_always_counted() -> None:
    assert reply_size.may_exceed(1 << 60, {m.Status}, 1, 10, 10)
    assert not reply_size.may_exceed(1 << 60, {m.Get}, 1, 10, 10)


# ---------------------------------------------------------------------- docs/protocol.md


def documented() -> dict[str, tuple[str, str]]:
    """The table of requests in docs/protocol.md: for each name the request as written there, and the text."""
    lines = PROTOCOL_TEXT.partition("| request | reply |\n| --- | --- |\n")[2].partition("\n\n")[0].splitlines()
    rows = [re.fullmatch(r'\| `(\["(\w+)".*?\])` \| (.*) \|', line) for line in lines]
    assert all(rows), "each row of the table is a request and its reply"
    return {row[2]: (row[1], row[3]) for row in rows if row is not None}


def test_the_documentation_has_a_row_for_each_request() -> None:
    assert set(documented()) == {kind.__struct_config__.tag for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__struct_config__.tag)
def test_the_documentation_says_which_requests_only_administrators_may_send(kind: type[m.Request]) -> None:
    _, text = documented()[str(kind.__struct_config__.tag)]
    assert ("administrators only" in text.lower()) == (TABLE[kind].right == ADMINISTER)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__struct_config__.tag)
def test_the_documentation_has_each_field_of_a_request(kind: type[m.Request]) -> None:
    signature, _ = documented()[str(kind.__struct_config__.tag)]
    depth, fields = 0, 0
    for character in signature[1:-1]:
        depth += (character in "[{") - (character in "]}")
        fields += character == "," and depth == 0
    assert fields == len(kind.__struct_fields__), signature
