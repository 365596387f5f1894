"""Every request: the form of its reply, its errors, and the clients that may send it. In memory, without sockets."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from kvd import __version__
from kvd.protocol.errors import CODES
from kvd.protocol.limits import Limits
from kvd.requests.errors import RequestError, error_reply

if TYPE_CHECKING:
    from tests.harness.in_memory import InMemoryClient

Connect = Callable[..., "InMemoryClient"]


# ---------------------------------------------------------------------- the form of each reply


def test_ping_answers_true(client: "InMemoryClient") -> None:
    assert client.ask("ping") is True


def test_get_answers_the_value_or_nil(client: "InMemoryClient") -> None:
    client.ask("set", {"cake": "🎂".encode(), "empty": b""})
    assert [client.ask("get", key) for key in ("cake", "empty", "missing")] == ["🎂".encode(), b"", None]


def test_get_many_answers_values_and_nils_in_the_order_of_the_keys(client: "InMemoryClient") -> None:
    client.ask("set", {"a": b"1", "b": b""})
    assert client.ask("get_many", ["b", "no", "a", "b"]) == [b"", None, b"1", b""]
    assert client.ask("get_many", []) == []


def test_get_many_reads_an_old_version(client: "InMemoryClient") -> None:
    first = client.ask("set", {"a": b"1"})
    client.ask("set", {"a": b"2"})
    assert client.ask("get_many", ["a"], first) == [b"1"]
    assert client.ask("get_many", ["a"], 0) == [None]


def test_set_answers_the_version_of_its_commit(client: "InMemoryClient") -> None:
    first, second = client.ask("set", {"a": b"1", "b": b"2"}), client.ask("set", {"c": b"3"})
    assert 0 < first < second
    assert client.ask("set", {}) == second, "nothing to commit"


def test_delete_answers_its_version_and_the_number_of_deleted_keys(client: "InMemoryClient") -> None:
    version = client.ask("set", {"a": b"1", "b": b"2", "c": b"3"})
    assert client.ask("delete", ["a"]) == [version + 1, 1]
    assert client.ask("delete", ["b", "no", "b", "c"], True) == [version + 2, 2]
    assert client.ask("delete", ["no"], True) == [version + 2, 0]


def test_scan_answers_items_and_the_start_of_the_next_page(client: "InMemoryClient") -> None:
    version = client.ask("set", {"b": b"2", "a": b"1", "c": b"3"})
    assert client.ask("scan", "", None, 2) == [[["a", b"1", version], ["b", b"2", version]], "c"]
    assert client.ask("scan", "c", None, 2, None, True) == [[["c", None, version]], None]
    assert client.ask("scan", "a", "b", 9) == [[["a", b"1", version]], None]
    assert client.ask("scan", "", None, 9, 0) == [[], None]


def test_metrics_begin_with_the_five_of_the_first_version(client: "InMemoryClient") -> None:
    client.batch(["set", {"cake": "🎂".encode(), "horns": b"x"}], ["get", "cake"], ["delete", ["horns"]])
    metrics = client.ask("metrics")
    assert metrics[:5] == [
        ["keys_stored", 1], ["value_bytes_stored", 4], ["set_operations", 2], ["get_operations", 1],
        ["delete_operations", 1],
    ]  # fmt: skip
    assert dict(metrics)["history_commits"] == 2


def test_status_answers_names_and_values(client: "InMemoryClient") -> None:
    assert client.ask("status") == [["version", "1"], ["connections", 2]]


def test_shutdown_answers_the_process_id(client: "InMemoryClient") -> None:
    assert client.ask("shutdown") == [4711]
    assert client.backend.stopping


def test_hello_answers_the_servers_identity_and_limits(connect: Connect) -> None:
    client = connect(Limits(max_key_bytes=9))
    version = client.ask("set", {"a": b""})
    protocol, server, store_id, at, limits = client.ask("hello", 1, "test")
    assert (protocol, server, at) == (1, __version__, version)
    assert store_id == client.database.store_id != connect().database.store_id
    assert limits == msgspec.to_builtins(Limits(max_key_bytes=9))


# ---------------------------------------------------------------------- errors


def test_a_request_that_fails_does_not_stop_the_next(client: "InMemoryClient") -> None:
    replies = client.batch(["get", ""], ["set", {"": b""}], ["delete", ["no"]], ["set", {"a": b"1"}], ["get", "a"])
    assert [reply["error"] for reply in replies[:3]] == ["bad_request", "bad_request", "not_found"]
    assert replies[4] == b"1"


def test_a_delete_names_the_missing_keys_and_deletes_nothing(client: "InMemoryClient") -> None:
    client.ask("set", {"a": b"1"})
    reply = client.ask("delete", ["a", "no", "never", "no"])
    assert (reply["error"], reply["keys"]) == ("not_found", ["no", "never"])
    assert reply["message"] == "no such key: 'no', 'never'; nothing was deleted"
    assert (client.ask("get", "a"), client.metric("delete_operations")) == (b"1", 0)


def test_the_error_for_a_pruned_version_has_the_oldest_readable_one(connect: Connect) -> None:
    client = connect(max_commits=0)
    for value in (b"1", b"2", b"3"):
        client.ask("set", {"a": value})
    for request in (["get_many", ["a"], 0], ["scan", "", None, 9, 0], ["get_many", ["a"], -2]):
        reply = client.ask(*request)
        assert (reply["error"], reply["oldest_readable"]) == ("snapshot_gone", client.metric("oldest_readable_version"))
    assert client.metric("oldest_readable_version") == 2


@pytest.mark.parametrize("at", [2, 2**63, 2**64 - 1])
def test_a_future_version_is_a_bad_request(client: "InMemoryClient", at: int) -> None:
    client.ask("set", {"a": b"1"})
    assert client.code("get_many", ["a"], at) == client.code("scan", "", None, 9, at) == "bad_request"


def test_error_messages_are_short_however_long_the_keys_are(client: "InMemoryClient") -> None:
    keys = [letter * 4_096 for letter in "abcdefgh"]
    reply = client.ask("delete", keys)
    assert reply["keys"] == keys, "the field has the whole keys"
    assert len(reply["message"]) == 301
    assert reply["message"].endswith("…")


def test_error_replies_have_only_known_codes() -> None:
    assert error_reply("busy", "x", more=1) == {"error": "busy", "message": "x", "more": 1}
    assert len(error_reply("busy", "x" * 300)["message"]) == 300  # type: ignore[arg-type]
    for code in CODES:
        assert RequestError(code, "why").reply() == {"error": code, "message": "why"}
    with pytest.raises(AssertionError):
        error_reply("no_such_code", "")


def test_an_internal_error_shows_no_details_to_the_client_and_logs_them(
    client: "InMemoryClient", caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the secret inside")

    client.database.metrics = broken  # type: ignore[method-assign, assignment]
    replies = client.batch(["set", {"a": b"1"}], ["metrics"], ["get", "a"])
    assert replies[1]["error"] == "internal"
    assert "secret" not in str(replies)
    assert replies[2] == b"1"
    assert "internal error in Metrics of test" in caplog.text
    assert "the secret inside" in caplog.text


# ---------------------------------------------------------------------- rights


@pytest.mark.parametrize("uid", [1, 65_534, None])
def test_only_administrators_may_reload_and_shut_down(
    connect: Connect, uid: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    client = connect(uid=uid)
    client.peer.is_authenticated = True
    assert [client.code("reload"), client.code("shutdown")] == ["forbidden", "forbidden"]
    assert not client.backend.stopping
    assert "may not ask for reload" in caplog.text
    assert "may not ask for shutdown" in caplog.text
    assert client.code("status") == client.code("metrics") == ""


def test_root_is_an_administrator_and_so_is_the_daemons_own_user(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1234)
    assert [connect(uid=uid).peer.administrator for uid in (0, 1234, 1235, None)] == [True, True, False, False]
    monkeypatch.setattr("os.geteuid", lambda: 65_534)
    for every_id_is_mapped in (True, False):
        monkeypatch.setattr("kvd.requests.access.has_all_ids", lambda has_all=every_id_is_mapped: has_all)
        is_administrator = connect(uid=65_534).peer.administrator
        assert is_administrator == every_id_is_mapped, "in a namespace with few ids it may stand for any user"


def test_a_reload_that_fails_answers_the_reason(client: "InMemoryClient") -> None:
    assert client.ask("reload") == {"error": "bad_request", "message": "kvd.toml, line 3: no such key"}


def test_a_shutdown_is_logged_with_the_client_that_asked_for_it(
    client: "InMemoryClient", caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        client.ask("shutdown")
    assert "shutdown asked for by test" in caplog.text


def test_hello_is_optional_on_a_unix_socket_and_needs_no_token(connect: Connect) -> None:
    client = connect(token="s3cret")  # noqa: S106
    assert [reply == [] for reply in client.batch(["hello", 1, "me"], ["get_many", []])] == [False, True]
    assert client.ask("hello", 1, "me", "wrong")[0] == 1


@pytest.mark.parametrize("hello", [["hello", 1, "me"], ["hello", 1, "me", ""], ["hello", 1, "me", "s3cre"], ["ping"]])
def test_a_tcp_peer_without_the_token_gets_only_errors(
    connect: Connect, hello: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    client = connect(token="s3cret", uid=None)  # noqa: S106
    replies = client.batch(["set", {"a": b"1"}], hello, ["get", "a"], ["metrics"], ["shutdown"])
    assert [reply["error"] for reply in replies] == ["unauthenticated"] * 5
    assert (client.peer.is_authenticated, client.metric("version")) == (False, 0)
    assert ("wrong or missing token" in caplog.text) == (hello != ["ping"])
    assert "s3cre" not in caplog.text + str(replies)


def test_with_the_token_a_tcp_peer_may_go_on_in_the_same_frame(connect: Connect) -> None:
    client = connect(token="schlüssel", uid=None)  # noqa: S106
    early, hello, late = client.batch(["get", "a"], ["hello", 1, "me", "schlüssel"], ["get", "a"])
    assert (early["error"], hello[0], late) == ("unauthenticated", 1, None)
    assert client.ask("set", {"a": b"1"}) == 1
    assert client.code("shutdown") == "forbidden"


def test_without_a_configured_token_every_token_is_wrong(connect: Connect) -> None:
    client = connect(uid=None)
    assert [client.code("hello", 1, "me", *more) for more in ([], [None], [""], ["None"])] == ["unauthenticated"] * 4


@pytest.mark.parametrize("protocol", [0, 2, -1, 2**64 - 1])
@pytest.mark.parametrize("uid", [0, None])
def test_the_error_for_another_protocol_names_the_supported_one(
    connect: Connect, protocol: int, uid: int | None
) -> None:
    client = connect(token="s3cret", uid=uid)  # noqa: S106
    reply = client.ask("hello", protocol, "me", "s3cret")
    assert (reply["error"], reply["protocols"]) == ("unsupported_protocol", [1])
    assert client.peer.is_authenticated == (uid is not None)
