"""Clients on TCP are told apart by the name that they have shown, and by how they have shown it."""

import pytest

from kvd.requests.access import Identity
from kvd.requests.peer import Peer
from tests.harness.in_memory import InMemoryClient, InMemoryServer, build

ID = b"the same 16 byte"
ANN, BOB = Identity(token="ann"), Identity(token="bob")  # noqa: S106 - names of tokens
CERTIFIED = Identity(certificate="ann")


def tcp(server: InMemoryServer, identity: Identity) -> InMemoryClient:
    peer = Peer("tcp 127.0.0.1:1", None)
    peer.authenticate_as(identity)
    return InMemoryClient(server, peer)


@pytest.mark.parametrize("other", [BOB, CERTIFIED, Identity()])
@pytest.mark.parametrize("request_", [["increment", "n", 1], ["set", {"n": b"1"}]], ids=["increment", "set"])
def test_an_id_of_one_client_is_another_id_for_the_next(other: Identity, request_: list[object]) -> None:
    server = build()
    how = {"id": ID, "since": 0}
    first = tcp(server, ANN).ask(*request_, how)
    assert tcp(server, ANN).ask(*request_, how) == first, "sent again: the same answer, and nothing is done"
    assert server.database.store.version == 1
    second = tcp(server, other).ask(*request_, how)
    assert second != first
    assert server.database.store.version == 2


def test_unnamed_tokens_tell_clients_apart() -> None:
    server = build()
    for count, token in enumerate(["one", "two", "one"], 1):
        client = tcp(server, Identity())
        client.peer.token = token
        client.ask("increment", "n", 1, {"id": ID, "since": 0})
        assert server.database.store.version == min(count, 2)


@pytest.mark.parametrize("name", ["expired", "uid 0 pid 1 (systemd)", " ", "ann"])
def test_an_author_says_how_the_name_was_shown(name: str) -> None:
    server = build()
    authors = []
    for identity in (Identity(token=name), Identity(certificate=name)):
        client = tcp(server, identity)
        client.ask("set", {"a": b""})
        authors.append(client.ask("history", "a", 1, None)[0][3])
    assert authors == [[None, None, f"token {name}"], [None, None, f"certificate {name}"]]
