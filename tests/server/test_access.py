"""Access rights: every request of every identity under random rules, against an oracle of a few lines.

The oracle does not know how rules are looked up. It decides key by key, and decides a range by all the keys of a small
world.
"""

import itertools
import os
import random
from typing import Any

import pytest

from kvd.requests.access import (
    ADMINISTER,
    CACHE,
    OVERFLOW_ID,
    READ,
    RIGHTS,
    WATCH,
    WRITE,
    Access,
    AccessRule,
    Grant,
    Identity,
)
from tests.harness.fake_backend import FakeBackend
from tests.harness.in_memory import InMemoryClient, build
from tests.harness.scale import SCALE

ROUNDS = max(300, int(300 * SCALE))
LETTERS = "ab"
PREFIXES = ["", "a", "b", "ab", "aba", "b" + "b"]
# All keys of up to four letters: these tests' rules and ranges distinguish no others.
WORLD = ["".join(key) for size in range(1, 5) for key in itertools.product(LETTERS, repeat=size)]
IDENTITIES = [
    Identity(uid=5001, gids=frozenset((7001,))),
    Identity(uid=5002, gids=frozenset((7001, 7002))),
    Identity(uid=5003),
    Identity(token="ci"),  # noqa: S106  # a name
    Identity(certificate="web"),
    Identity(uid=OVERFLOW_ID, gids=frozenset((OVERFLOW_ID,))),
]


def oracle(rules: list[AccessRule], identity: Identity, key: str) -> int:
    """The rights of ``identity`` to ``key``: the union of all matching rules of the longest prefix."""
    matching = [rule for rule in rules if key.startswith(rule.prefix)]
    longest = max((len(rule.prefix) for rule in matching), default=-1)
    rights = 0
    for rule in matching:
        matches = (
            rule.everyone
            or (rule.uid is not None and rule.uid == identity.uid and identity.uid != OVERFLOW_ID)
            or (rule.gid is not None and rule.gid in identity.gids and rule.gid != OVERFLOW_ID)
            or (rule.token is not None and rule.token == identity.token)
            or (rule.certificate is not None and rule.certificate == identity.certificate)
        )
        if len(rule.prefix) == longest and matches:
            rights |= sum(RIGHTS[name] for name in rule.rights)
    return rights


def random_rules(chosen: random.Random) -> list[AccessRule]:
    def rule() -> AccessRule:
        rights = tuple(name for name in RIGHTS if chosen.random() < 0.6)
        subject: dict[str, Any] = chosen.choice(
            [{"everyone": True}, {"uid": 5001}, {"uid": 5002}, {"gid": 7001}, {"gid": 7002}, {"token": "ci"},
             {"certificate": "web"}, {"uid": OVERFLOW_ID}, {"gid": OVERFLOW_ID}]
        )  # fmt: skip
        return AccessRule(prefix=chosen.choice(PREFIXES), rights=rights, **subject)

    return [rule() for _ in range(chosen.randrange(1, 8))]


def connect(rules: list[AccessRule], identity: Identity, backend: FakeBackend | None = None) -> InMemoryClient:
    """A connection of ``identity``, under these rules, to a database with all keys of the world."""
    server = build(backend=backend)
    server.connect().ask("set", dict.fromkeys(WORLD, b"1"))
    server.set_rules(rules)
    return server.connect_as(identity)


def state(client: InMemoryClient) -> dict[str, bytes | None]:
    """The value of each key of the world."""
    return dict(zip(WORLD, client.database.store.get_many(WORLD), strict=True))


def keys_below(prefix: str) -> list[str]:
    return [key for key in WORLD if key.startswith(prefix)]


def keys_between(start: str, end: str | None) -> list[str]:
    return [key for key in WORLD if key >= start and (end is None or key < end)]


def random_request(chosen: random.Random) -> tuple[list[Any], list[tuple[int, list[str]]]]:
    """A random request, and the rights that it needs, each with the keys that it is needed for."""
    key, other = chosen.choice(WORLD), chosen.choice(WORLD)
    prefix = chosen.choice(PREFIXES)
    start, end = chosen.choice(["", *WORLD]), chosen.choice([None, *WORLD])
    return chosen.choice(
        [
            (["get", key], [(READ, [key])]),
            (["get_many", [key, other]], [(READ, [key, other])]),
            (["fetch", [key, other]], [(READ, [key, other])]),
            (["ttl", [key, other]], [(READ, [key, other])]),
            (["history", key, 10], [(READ, [key])]),
            (["set", {key: b"2", other: b"2"}], [(WRITE, [key, other])]),
            (["delete", [key, other], True], [(WRITE, [key, other])]),
            (["touch", [key, other], 1000], [(WRITE, [key, other])]),
            (["increment", key, 1], [(READ, [key]), (WRITE, [key])]),
            (["commit", {key: b"2", other: None}, {}], [(WRITE, [key, other])]),
            (["commit", {key: b"2"}, {other: 1}], [(WRITE, [key]), (READ, [other])]),
            (["commit", {key: b"2"}, {}, [[start, end]], 1], [(WRITE, [key]), (READ, keys_between(start, end))]),
            (["scan", start, end, 100], [(READ, keys_between(start, end))]),
            (["scan", prefix, prefix + "c", 100, None, True], [(READ, keys_below(prefix))]),
            (["log", None, 10], [(READ, WORLD)]),
            (["watch", prefix], [(WATCH, keys_below(prefix))]),
        ]
    )


def test_every_request_is_decided_as_the_oracle_says() -> None:
    chosen = random.Random(6)  # noqa: S311  # to be repeatable
    allowed = denied = strict = 0
    for _ in range(ROUNDS):
        rules, identity = random_rules(chosen), chosen.choice(IDENTITIES)
        client = connect(rules, identity)
        for _ in range(10):
            request, needed = random_request(chosen)
            before, version = state(client), client.database.store.version
            code = client.code(*request)
            is_allowed = all(oracle(rules, identity, key) & right for right, keys in needed for key in keys)
            if code == "forbidden":
                denied += 1
                # A range is also denied for the sake of keys that lie in it but outside this small world.
                if is_allowed:
                    assert request[0] in ("scan", "commit", "log", "watch"), (rules, identity, request)
                    strict += 1
                assert (state(client), client.database.store.version) == (before, version), (
                    "a denied request has no effect"
                )
            else:
                assert is_allowed, (rules, identity, request)
                allowed += code == ""
            client.peer.feed = None
    assert allowed > ROUNDS
    assert denied > ROUNDS
    assert strict < denied / 20, "a range is almost never denied without need"


def test_each_denied_request_of_a_frame_gets_an_error_and_the_others_run() -> None:
    client = connect([AccessRule(prefix="a", everyone=True, rights=("read", "write"))], IDENTITIES[0])
    replies = client.batch(
        ["get", "a"], ["get", "b"], ["set", {"aa": b"3"}], ["set", {"aa": b"4", "b": b"4"}], ["get", "aa"]
    )
    assert [replies[0], replies[4]] == [b"1", b"3"]
    assert [replies[number]["error"] for number in (1, 3)] == ["forbidden", "forbidden"]


def test_a_denial_is_the_same_whether_the_key_exists_or_not() -> None:
    client = connect([AccessRule(prefix="a", everyone=True, rights=("read", "write"))], IDENTITIES[0])
    for request in (
        ["get", "KEY"], ["ttl", ["KEY"]], ["history", "KEY", 5], ["delete", ["KEY"]], ["increment", "KEY", 1],
        ["commit", {"a": b"x"}, {"KEY": 0}],
    ):  # fmt: skip
        existing, absent = (client.ask(*[_with(key, part) for part in request]) for key in ("b", "b-is-not-there"))
        assert existing["message"].replace("'b'", "KEY") == absent["message"].replace("'b-is-not-there'", "KEY")
        assert existing.keys() == absent.keys()
        assert existing["error"] == absent["error"] == "forbidden"


def _with(key: str, part: Any) -> Any:  # noqa: ANN401
    if isinstance(part, list):
        return [_with(key, each) for each in part]
    if isinstance(part, dict):
        return {_with(key, name): value for name, value in part.items()}
    return key if part == "KEY" else part


def test_without_rules_all_but_administering_is_allowed() -> None:
    client = connect([], IDENTITIES[0])
    assert client.peer.grant is Grant.ALL_BUT_ADMINISTER
    assert client.ask("get", "a") == b"1"
    assert client.code("shutdown") == "forbidden"


@pytest.mark.parametrize("uid", [0, os.geteuid()])
def test_root_and_the_daemons_own_user_have_all_rights(uid: int) -> None:
    client = connect([AccessRule(prefix="", uid=5001, rights=())], Identity(uid=uid))
    assert client.ask("get", "a") == b"1"
    assert client.ask("access", "a", 5001)[0] == []


def test_the_error_for_an_administrative_request_names_the_users_with_that_right() -> None:
    reply = connect([], IDENTITIES[0]).ask("checkpoint")
    assert reply["error"] == "forbidden"
    assert reply["message"] == (
        "checkpoint needs the right to administer: root and the daemon's own user have it, others only by a rule"
    )


def test_only_a_rule_without_a_prefix_gives_the_right_to_administer() -> None:
    rules = [AccessRule(uid=5001, rights=("administer",)), AccessRule(prefix="a", uid=5002, rights=("administer",))]
    assert connect(rules, IDENTITIES[0]).ask("access", "a", 5002)[0] == ["administer"]
    assert connect(rules, IDENTITIES[1]).code("access", "a", 5002) == "forbidden", (
        "the right means nothing in a rule with a prefix"
    )
    assert connect(rules, IDENTITIES[0]).code("get", "a") == "forbidden"


def test_a_near_cache_gets_slots_only_for_keys_that_it_may_cache() -> None:
    rules = [
        AccessRule(everyone=True, rights=("read",)),
        AccessRule(prefix="a", everyone=True, rights=("read", "cache")),
    ]
    client = connect(rules, IDENTITIES[0])
    client.server.share_table()
    cacheable, uncacheable = client.ask("fetch", ["a", "b"])
    assert isinstance(cacheable[2], int)
    assert uncacheable[2:4] == [None, None]
    assert uncacheable[0] == b"1"


def test_a_client_without_the_right_to_cache_gets_no_table() -> None:
    client = connect([AccessRule(everyone=True, rights=("read", "write", "watch"))], IDENTITIES[0])
    assert client.code("attach") == "forbidden"


def test_new_rules_invalidate_all_near_caches() -> None:
    client = connect([], IDENTITIES[0])
    table = client.server.share_table()
    before = [generation for _, generation in table.slots_and_generations(WORLD)]
    client.server.near_caches.invalidate_all()
    after = [generation for _, generation in table.slots_and_generations(WORLD)]
    assert all(new > old for old, new in zip(before, after, strict=True))


def test_an_explanation_names_the_rules_that_decide() -> None:
    rules = [AccessRule(everyone=True, rights=("read",)), AccessRule(prefix="a", gid=7002, rights=("read", "write")),
             AccessRule(prefix="a", uid=5001, rights=())]  # fmt: skip
    access = Access(rules)
    assert access.explain(IDENTITIES[1], "abc") == (
        ["read", "write"], "the longest prefix with rules is 'a'",
        ["gid 7002 may read, write", "uid 5001 may nothing (another client)"],
    )  # fmt: skip
    assert access.explain(IDENTITIES[2], "abc")[0] == []
    assert access.explain(IDENTITIES[2], "b")[0] == ["read"]
    assert Access(rules[1:]).explain(IDENTITIES[2], "b")[:2] == (
        [], "no rule is for a prefix of this key, and what is not allowed is denied",
    )  # fmt: skip
    assert Access().explain(IDENTITIES[2], "b")[0] == ["read", "write", "watch", "cache"]
    assert CACHE
    assert ADMINISTER
