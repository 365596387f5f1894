"""A server that returns the same page for ever: the client notices that it gets no further."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

import kv

if TYPE_CHECKING:
    from tests.harness.scripted_server import Line, ScriptedServer

    Scripted = Callable[..., ScriptedServer]

PAGES: dict[str, Any] = {
    "scan": [[["a", b"1", 1]], "a"],
    "largest": [[["a", 1]], ""],
    "history": [[7, b"1", None, None]],
    "log": [[3, None, None, ["a"]]],
    "hello": [1, "0", "store", 90, {}],
    "begin": 5,
    "end": True,
}


def in_transaction(db: Any) -> object:  # noqa: ANN401
    with db.transaction() as txn:
        return list(txn.scan())


@pytest.mark.parametrize(
    "call",
    [
        lambda db: list(db.scan("a")),
        lambda db: list(db.scan(keys_only=True, start="a")),
        in_transaction,
        lambda db: db.largest_keys(),
        lambda db: list(db.history("a")),
        lambda db: list(db.log(2)),
        lambda db: list(db.log(limit=100)),
    ],
    ids=["scan", "keys", "transaction", "largest", "history", "log", "newest"],
)
def test_pages_that_do_not_go_on_are_an_error(
    scripted: "Scripted", open_client: Callable[..., Any], call: Callable[[Any], object]
) -> None:
    def repeat(line: "Line") -> None:
        for requests in iter(line.request, None):
            line.reply(*(PAGES[request[0]] for request in requests))

    db = open_client(scripted(repeat).address)
    with pytest.raises(kv.ProtocolError, match="pages do not go on"):
        call(db)
