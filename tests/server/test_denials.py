"""A denial names the key, the right and who was denied, and nothing that the rules do not say."""

import pytest

from kvd.requests.access import AccessRule, Identity
from tests.harness.in_memory import InMemoryServer, build

WHO = Identity(uid=33)


@pytest.fixture
def server() -> InMemoryServer:
    server = build()
    server.set_rules([AccessRule(prefix="pub/", everyone=True, rights=("read",))])
    return server


@pytest.mark.parametrize(
    ("request_", "denied"),
    [
        (["get", "own"], "read 'own'"),
        (["set", {"pub/a": b"1"}], "write 'pub/a'"),
        (["get_many", ["pub/a", "own"]], "read 'own'"),
        (["delete", ["pub/b"], True], "write 'pub/b'"),
        (["increment", "pub/n", 1], "write 'pub/n'"),
        (["commit", {"pub/a": b""}, {"own": 1}], "write 'pub/a'"),
        (["scan", "", None, 10], "read all keys from '' on"),
        (["scan", "a", "b", 10], "read all keys from 'a' to 'b'"),
        (["get", "x" * 1_000], f"read '{'x' * 99}…'"),
    ],
    ids=str,
)
def test_a_denial_names_key_right_and_client(server: InMemoryServer, request_: list[object], denied: str) -> None:
    reply = server.connect_as(WHO).ask(*request_)
    assert (reply["error"], reply["message"]) == (
        "forbidden",
        f"permission denied: uid 33 may not {denied}; it did not run",
    )


@pytest.mark.parametrize("identity", [Identity(token="ann"), Identity(certificate="ann")])  # noqa: S106 - a name
def test_a_denial_on_tcp_says_which_name_was_shown(server: InMemoryServer, identity: Identity) -> None:
    kind = "token" if identity.token else "certificate"
    assert f"{kind} ann may not read 'own'" in server.connect_as(identity).ask("get", "own")["message"]


@pytest.mark.parametrize("request_", [["get", "own"], ["set", {"own": b""}], ["delete", ["own"]], ["fetch", ["own"]]])
def test_a_denial_does_not_tell_whether_the_key_exists(server: InMemoryServer, request_: list[object]) -> None:
    client = server.connect_as(WHO)
    before = client.ask(*request_)
    server.connect().ask("set", {"own": b"1"})
    assert client.ask(*request_) == before
