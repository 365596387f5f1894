"""What a caller passes is checked before anything is sent: keys as values are, numbers, durations."""

import datetime
import enum
import math
from collections.abc import Callable
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

import kv
from kv.wire import operations
from kv.wire.codecs import Codec

if TYPE_CHECKING:
    from tests.client.conftest import Loop
    from tests.harness.scripted_server import Line, ScriptedServer

    Scripted = Callable[..., ScriptedServer]
Connect = Callable[..., kv.Client]


class Text(str):
    """A string that prints itself as another."""

    def __str__(self) -> str:
        return "other"


class Fruit(enum.StrEnum):
    CAKE = "cake"


class Index:
    """An integer of another library, as numpy has them."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


WRONG: Any = b"a"
WRONG_CALLS: dict[str, Callable[[Any], object]] = {
    "a key is a string, not bytes": lambda db: db.get(WRONG),
    "a key is a string, not NoneType": lambda db: db.get(None),
    "a key is a string, not int": lambda db: db.get_many(["a", 1]),
    "a key is a string, not list": lambda db: db.get(["a"]),
    "a key is a string, not float": lambda db: db.fetch([1.5]),
    r"as in \['abc'\], not one str": lambda db: db.get_many("abc"),
    r"as in \['ab'\], not one str": lambda db: db.fetch("ab"),
    "not one bytes": lambda db: db.get_many(b"ab"),
    "a key is a string, not tuple": lambda db: db.delete(("a", "b")),
    "a key is a string, not set": lambda db: db.touch({"a"}, ttl=1),
    "a key is a string, not dict": lambda db: db.ttl({}),
    "a key is a string, not bytes; decode": lambda db: db.set(b"a", b""),
    "a key is a string, not memoryview": lambda db: db.set_many({"a": b"", memoryview(b"a"): b""}),
    "by is an integer, not float": lambda db: db.increment("a", 1.5),
    "by is an integer, not str": lambda db: db.increment("a", "1"),
    "by is an integer, not bool": lambda db: db.increment("a", True),
    "a version is an integer, not str": lambda db: db.get_many(["a"], at="1"),
    "a version is an integer, not float": lambda db: db.compare_and_set("a", b"", 1.0),
    "a range's start is a string, not int": lambda db: db.commit({}, ranges=[(1, None)], snapshot=1),
    "a time is an integer, not datetime": lambda db: db.version_at(datetime.datetime.now(tz=datetime.UTC)),
    "a prefix is a string, not bytes": lambda db: db.watch(b"a"),
    "a version is an integer, not complex": lambda db: db.watch("a", since=1j),
    "a prefix is a string, not object": lambda db: db.mirror(object()),
    "a lock's name is a string, not bytes": lambda db: db.lock(b"a"),
    "a limit is an integer, not float": lambda db: db.slow_log(limit=1.5),
    "a duration is seconds or a timedelta, not bool": lambda db: db.set("a", b"", ttl=True),
    "a duration is seconds or a timedelta, not str": lambda db: db.set("a", b"", ttl="1"),
}


@pytest.fixture
def untouched(scripted: "Scripted") -> "ScriptedServer":
    """A server to which no client may ever connect."""

    def refuse(_: "Line") -> None:
        raise AssertionError("the client sent something")

    return scripted(refuse)


@pytest.mark.parametrize("near_cache", [False, True])
@pytest.mark.parametrize("what", WRONG_CALLS)
def test_a_wrong_argument_is_named_before_anything_is_sent(
    untouched: "ScriptedServer", connect: Connect, near_cache: bool, what: str
) -> None:
    with pytest.raises(TypeError, match=what):
        WRONG_CALLS[what](connect(untouched.address, near_cache=near_cache))
    assert untouched.connections == 0


@pytest.mark.parametrize(
    ("what", "steps"),
    [
        ("a prefix is a string, not bytes", lambda db: db.scan(b"a")),
        ("start is a string, not int", lambda db: db.scan(start=1)),
        ("end is a string, not int", lambda db: db.scan(end=1)),
        ("a limit is an integer, not float", lambda db: db.scan(limit=1.5)),
        ("a limit is an integer, not str", lambda db: db.history("a", limit="1")),
        ("a key is a string, not bytes", lambda db: db.history(b"a")),
        ("a limit is an integer, not bool", lambda db: db.log(limit=True)),
        ("a key is a string, not bytes", lambda db: [db.rollback(b"a", to=1)]),
        ("a version is an integer, not float", lambda db: [db.rollback("a", to=1.0)]),
        ("not one str", lambda db: [db.transaction().get_many("abc")]),
        ("a key is a string, not bytes", lambda db: [db.transaction().set(b"a", b"")]),
        ("a key is a string, not bytes", lambda db: [db.transaction().delete(b"a")]),
        ("a key is a string, not bytes", lambda db: [db.at(1).get(b"a")]),
    ],
)
def test_a_wrong_argument_of_several_steps_is_named_before_the_first(
    untouched: "ScriptedServer", open_client: Connect, what: str, steps: Callable[[Any], Any]
) -> None:
    with pytest.raises(TypeError, match=what):
        list(steps(open_client(untouched.address)))
    assert untouched.connections == 0


@pytest.mark.parametrize(
    "what", [name for name in WRONG_CALLS if not {"prefix", "lock", "complex"} & {*name.replace("'", " ").split()}]
)
def test_the_asyncio_client_names_a_wrong_argument_too(untouched: "ScriptedServer", loop: "Loop", what: str) -> None:
    for near_cache in (False, True):
        with pytest.raises(TypeError, match=what):
            loop.run(WRONG_CALLS[what], kv.aio.connect(untouched.address, near_cache=near_cache))
    assert untouched.connections == 0


def test_strings_and_integers_of_other_kinds_are_taken_for_what_they_are(db: kv.Client) -> None:
    db.set(Text("a"), b"1")
    db.set_many({Fruit.CAKE: b"cake", Text("b"): b"2"})
    assert (db.get("a"), db.get(Text("a")), db.get(Fruit.CAKE)) == (b"1", b"1", b"cake")
    assert db.get_many([Text("b"), Fruit.CAKE]) == {"b": b"2", "cake": b"cake"}
    number: Any = Index(5)
    assert db.increment("n", number) == 5
    version = db.version()
    at: Any = Index(version)
    assert db.get_many(["n"], at=at) == {"n": b"5"}
    assert [item.key for item in db.scan(Text(""), limit=Index(2))] == ["a", "b"]  # type: ignore[arg-type]
    with db.transaction() as txn:
        txn[Text("a")] = b"3"
    assert db.get("a") == b"3"
    assert db.delete(Text("a"), Fruit.CAKE) == 2


@pytest.mark.parametrize(
    ("duration", "expected"),
    [(1, 1000), (0.0015, 2), (datetime.timedelta(seconds=2), 2000), (Decimal("0.5"), 500), (Index(3), 3000)],
)
def test_a_duration_is_rounded_up_to_milliseconds(duration: Any, expected: int) -> None:  # noqa: ANN401
    assert operations.milliseconds(duration) == expected


@pytest.mark.parametrize("duration", [math.inf, -math.inf, math.nan, Decimal("inf")])
def test_a_duration_is_finite(duration: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"a finite number of seconds, not .*None means without end"):
        operations.milliseconds(duration)


def test_text_that_is_no_unicode_is_refused_by_both_codecs(db: kv.Client, codec: Codec) -> None:
    with pytest.raises(UnicodeEncodeError):
        db.get("\udc80")
