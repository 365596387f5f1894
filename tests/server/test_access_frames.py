"""Access rules beyond single requests: frames, administrative requests, near caches, and how prefixes are found.

The oracle is the one of ``test_access.py``.
"""

import asyncio
import json
import random
import tracemalloc
from typing import Any, get_args

import msgspec
import pytest

from kvd.engine.durability import NO_WAIT
from kvd.journal.commit_log import CommitLog
from kvd.journal.records import Header
from kvd.protocol import messages
from kvd.protocol.messages import decode_batch
from kvd.requests import permissions
from kvd.requests.access import ADMINISTER, CACHE, READ, RIGHTS, WRITE, Access, AccessRule, Identity
from tests.harness.fake_backend import FakeBackend
from tests.harness.in_memory import build
from tests.journal.disks import MemoryDisk
from tests.journal.running import ME
from tests.server.test_access import IDENTITIES, ROUNDS, WORLD, connect, oracle, random_request, random_rules, state

ADMINISTRATIVE: list[list[Any]] = [
    ["shutdown"], ["reload"], ["checkpoint"], ["backup"], ["access", "a", 5002],
    ["slowlog", 10, True], ["largest", "", 10], ["hottest", "reads", 10], ["hottest", "writes", 10],
]  # fmt: skip
OPEN: list[list[Any]] = [
    ["ping"],
    ["status"],
    ["metrics"],
    ["exposition"],
    ["begin"],
    ["end", 1],
    ["version_at", 2**62],
]


class CountingBackend(FakeBackend):
    """A backend that does each request and counts it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def reload(self) -> list[str]:
        self.calls.append("reload")
        return []

    def checkpoint(self) -> int:
        self.calls.append("checkpoint")
        return 1

    def shutdown(self) -> int:
        self.calls.append("shutdown")
        return 1


def random_frame(chosen: random.Random) -> list[list[Any]]:
    """A frame of gets, of sets, or of both. Its keys are mostly similar, as in practice."""
    keys = [key for key in WORLD if key.startswith(chosen.choice(["", "a", "ab", "b"]))]
    kinds = chosen.choice(["get", "set", "both"])
    frame: list[list[Any]] = []
    for _ in range(chosen.randrange(1, 20)):
        if kinds == "get" or (kinds == "both" and chosen.random() < 0.5):
            frame.append(["get", chosen.choice(keys)])
        else:
            frame.append(["set", {chosen.choice(keys): b"2" for _ in range(chosen.choice([1, 1, 1, 7]))}])
    return frame


@pytest.mark.parametrize("sliced", [False, True])
def test_each_request_of_a_frame_is_decided_as_the_oracle_says(sliced: bool) -> None:
    chosen = random.Random(28)  # noqa: S311  # to be repeatable
    allowed = denied = 0
    for _ in range(ROUNDS):
        rules, identity = random_rules(chosen), chosen.choice(IDENTITIES)
        client = connect(rules, identity)
        for _ in range(5):
            frame, before = random_frame(chosen), state(client)
            replies = client.sliced(msgspec.msgpack.encode(frame)) if sliced else client.batch(*frame)
            expected = dict(before)
            for request, reply in zip(frame, replies, strict=True):
                right, keys = (READ, [request[1]]) if request[0] == "get" else (WRITE, list(request[1]))
                is_allowed = all(oracle(rules, identity, key) & right for key in keys)
                assert (isinstance(reply, dict) and reply["error"] == "forbidden") == (not is_allowed), (
                    rules,
                    identity,
                    request,
                )
                allowed, denied = allowed + is_allowed, denied + (not is_allowed)
                if is_allowed and right == WRITE:
                    expected |= request[1]
                elif is_allowed:
                    assert reply == expected[request[1]]
            assert state(client) == expected, "denied requests have no effect, and the others have theirs"
    assert min(allowed, denied) > ROUNDS


def test_the_deciding_prefix_is_found_among_many() -> None:
    chosen = random.Random(100)  # noqa: S311  # to be repeatable
    for _ in range(ROUNDS // 3):
        rules = [
            AccessRule(prefix=chosen.choice(["", *WORLD]), everyone=chosen.random() < 0.5, uid=5003,
                       rights=tuple(name for name in RIGHTS if chosen.random() < 0.5))
            for _ in range(chosen.randrange(1, 40))
        ]  # fmt: skip
        rules = [msgspec.structs.replace(rule, uid=None) if rule.everyone else rule for rule in rules]
        identity = chosen.choice(IDENTITIES)
        grant = Access(rules).grant(identity)
        keys = ["", *WORLD, "A", "c", "\U0010ffff", "a\U0010ffff", "ab\U0010ffffb"]
        for key in keys:
            assert grant.rights(key) == oracle(rules, identity, key), (rules, identity, key)
        for right in RIGHTS.values():
            sample = chosen.sample(keys, chosen.randrange(1, 20))
            is_allowed = all(oracle(rules, identity, key) & right for key in sample)
            for _ in range(2):  # the second decision comes out of the cache
                assert grant.may(right, sample) == is_allowed, (rules, identity, sample)


@pytest.mark.parametrize("request_", ADMINISTRATIVE, ids=lambda request: request[0])
def test_the_right_to_administer_is_decided_as_the_oracle_says(request_: list[Any]) -> None:
    chosen = random.Random(5)  # noqa: S311  # to be repeatable
    allowed = denied = 0
    for _ in range(ROUNDS // 3):
        rules, identity = random_rules(chosen), chosen.choice(IDENTITIES)
        backend = CountingBackend()
        client = connect(rules, identity, backend)
        is_allowed = any(rule.prefix == "" for rule in rules) and bool(oracle(rules, identity, "") & ADMINISTER)
        assert client.code(*request_) == ("" if is_allowed else "forbidden"), (rules, identity)
        assert len(backend.calls) == (
            is_allowed and hasattr(CountingBackend, request_[0]) and request_[0] not in ("status",)
        )
        assert (client.peer.feed is not None) == (is_allowed and request_[0] == "backup")
        allowed, denied = allowed + is_allowed, denied + (not is_allowed)
    assert min(allowed, denied) > 0


def test_near_caches_get_slots_as_the_oracle_says() -> None:
    chosen = random.Random(11)  # noqa: S311  # to be repeatable
    cacheable = denied = uncacheable = 0
    for _ in range(ROUNDS):
        rules, identity = random_rules(chosen), chosen.choice(IDENTITIES)
        client = connect(rules, identity)
        client.server.share_table()
        keys = chosen.sample(WORLD, 3)
        reply = client.ask("fetch", keys)
        rights = [oracle(rules, identity, key) for key in keys]
        if not all(right & READ for right in rights):
            assert isinstance(reply, dict)
            assert reply["error"] == "forbidden"
            denied += 1
            continue
        for right, (_, _, slot, *_) in zip(rights, reply, strict=True):
            assert (slot is not None) == bool(right & CACHE), (rules, identity, keys)
            cacheable, uncacheable = cacheable + bool(right & CACHE), uncacheable + (not right & CACHE)
    assert min(cacheable, uncacheable, denied) > 20


def test_attach_needs_the_right_to_cache_below_some_prefix() -> None:
    chosen = random.Random(12)  # noqa: S311  # to be repeatable
    for _ in range(ROUNDS // 3):
        rules, identity = random_rules(chosen), chosen.choice([one for one in IDENTITIES if one.uid is not None])
        client = connect(rules, identity)
        prefixes = {rule.prefix for rule in rules}
        is_allowed = any(oracle(rules, identity, prefix) & CACHE for prefix in prefixes)
        # There is no table to attach to, so a client with the right gets bad_request.
        assert client.code("attach") == ("bad_request" if is_allowed else "forbidden"), (rules, identity)


def test_requests_that_reveal_no_keys_are_open_to_every_client() -> None:
    client = connect([AccessRule(prefix="x", uid=1, rights=())], IDENTITIES[0])
    for request in OPEN:
        assert client.code(*request) == "", request


def test_each_kind_of_request_is_decided_in_one_of_these_tests() -> None:
    """And a kind that no rule decides is denied to every client."""
    chosen = random.Random(1)  # noqa: S311  # to be repeatable
    decided = {random_request(chosen)[0][0] for _ in range(1_000)}
    decided |= {request[0] for request in [*ADMINISTRATIVE, *OPEN]} | {"hello", "attach"}
    assert decided == {kind.__struct_config__.tag for kind in get_args(messages.AnyRequest)}

    class New(messages.Request, tag="new"):
        """A request of a later version."""

    assert not permissions.permits(New(), Access([]).grant(IDENTITIES[0]))  # type: ignore[arg-type]


def test_a_half_allowed_transaction_neither_reads_nor_writes() -> None:
    client = connect([AccessRule(prefix="a", everyone=True, rights=("read", "write"))], IDENTITIES[0])
    before, version = state(client), client.database.store.version
    for writes, reads, ranges in (
        ({"a": b"2", "b": b"2"}, {}, []), ({"a": b"2", "b": None}, {}, []), ({"a": b"2"}, {"aa": 1, "b": 1}, []),
        ({"a": b"2"}, {}, [["a", "b"], ["b", "c"]]), ({"a": b"2"}, {}, [["a", None]]), ({"a": b"2"}, {"b": 0}, []),
    ):  # fmt: skip
        assert client.code("commit", writes, reads, ranges, version) == "forbidden"
    assert (state(client), client.database.store.version) == (before, version)
    assert client.code("commit", {"a": b"2"}, {"aa": 1}, [["a", "b"]], version) == ""


@pytest.mark.parametrize("sliced", [False, True])
@pytest.mark.parametrize("request_", [["get", "KEY"], ["get_many", ["own", "KEY"]], ["delete", ["KEY"]]])
@pytest.mark.parametrize("key", ["there", "absent", "latest"])
def test_a_denied_request_never_waits_for_the_disk(key: str, request_: list[Any], sliced: bool) -> None:
    """Otherwise its delay would reveal whether the key exists: an absent key shows the current version."""
    request = json.loads(json.dumps(request_).replace("KEY", key))

    async def run() -> None:
        log = CommitLog(MemoryDisk(), Header(0, 1, 0, 0, bytes(8)), 1 << 20, lambda: 4711)
        server = build(log=log, loop=asyncio.get_running_loop())
        server.database.set({"there": b""}, ME)
        await server.flush()
        server.database.set({"latest": b""}, ME)
        server.set_rules([AccessRule(prefix="own", everyone=True, rights=("read",))])
        client = server.connect_as(Identity(uid=5001))
        requests = decode_batch(msgspec.msgpack.encode([request]))
        if sliced:
            replies, needs = client.run_slice(requests, 1_000)
        else:
            replies, needs = client.run_with_position(requests, 100)
        assert [reply["error"] for reply in replies] == ["forbidden"]
        assert needs is NO_WAIT
        allowed = decode_batch(msgspec.msgpack.encode([request, ["get", "own"]]))
        replies, needs = client.run_with_position(allowed, 100)
        assert isinstance(replies, list)
        assert needs is not NO_WAIT, "an allowed request still waits"
        await server.close()

    asyncio.run(run())


def test_cached_decisions_take_little_memory_whatever_the_keys() -> None:
    """Clients ask about absent keys too, and no limit counts the memory of these decisions."""
    grant = Access([AccessRule(everyone=True, rights=("read",))]).grant(IDENTITIES[0])
    tracemalloc.start()
    for number in range(50):
        assert grant.may(READ, [f"{number}/{each:>04000}" for each in range(1_000)])
        assert grant.may(READ, (f"{number:>04000}",))
    assert grant.may(READ, [f"{each:>0250}" for each in range(65_536)])
    for number in range(20_000):
        assert grant.may(READ, (f"{number:>0250}",))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 16 << 20


def test_costly_requests_run_in_slices_although_one_of_the_frame_is_denied() -> None:
    client = connect([AccessRule(prefix="a", uid=5003, rights=("read",))], IDENTITIES[2])
    frame = [["get", "b"], ["scan", "a", "b", 10], ["scan", "a", "b", 10]]
    payload = msgspec.msgpack.encode(frame)
    assert client.run(decode_batch(payload), len(payload)) is None
    denied, one, other = client.batch(*frame)
    assert denied["error"] == "forbidden"
    assert one == other
    assert len(one[0]) == 10
    client.peer.is_authenticated = False
    assert client.run(decode_batch(payload), len(payload)) is not None, "no request runs"


def test_denied_requests_do_not_count_among_the_hottest_keys() -> None:
    client = connect([AccessRule(prefix="a", uid=5003, rights=("read",))], IDENTITIES[2])
    frame = msgspec.msgpack.encode([["get", "b"], ["get", "a"]])
    hottest: list[tuple[str, int]] = []
    while not hottest:  # one frame in SAMPLE_EVERY is sampled
        client.sliced(frame)
        _, hottest = client.server.hot_keys.reads.most_common(10)
    assert [key for key, _ in hottest] == ["a"]
