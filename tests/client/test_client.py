"""The blocking client against a real daemon: every method, with both codecs."""

import os
import pathlib
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

import kv
from kv.wire.codecs import Codec

if TYPE_CHECKING:
    from tests.harness.daemon import Daemon

BINARY = bytes(range(256))


def keys(items: Any) -> list[str]:  # noqa: ANN401
    return [item.key for item in items]


# ---------------------------------------------------------------------- keys and values


def test_a_value_comes_back_as_it_was_set(db: kv.Client) -> None:
    for key, value in {"cake": "🎂".encode(), "empty": b"", "binary": BINARY, "a b\n=\0": b"x", "🎂": b"y"}.items():
        assert db.set(key, value) > 0
        assert db.get(key) == value
    assert db.get("missing") is None


def test_a_large_value_comes_back_as_it_was_set(db: kv.Client) -> None:
    value = os.urandom(8 * 2**20)
    db.set("large", value)
    assert db.get("large") == value
    db.delete("large")


def test_versions_rise_with_every_commit(db: kv.Client) -> None:
    versions = [db.set("a", b"1"), db.set_many({"a": b"2", "b": b"2"}), db.set("a", b"3")]
    assert versions == sorted(set(versions))


def test_get_many_returns_each_value_and_reads_old_versions(db: kv.Client) -> None:
    before = db.set_many({"a": b"1", "b": b"2"})
    db.set("a", b"3")
    assert db.get_many(["b", "no", "a"]) == {"b": b"2", "no": None, "a": b"3"}
    assert db.get_many(iter(["a"]), at=before) == {"a": b"1"}
    assert db.get_many([]) == {}


def test_delete_returns_how_many_keys_existed(db: kv.Client) -> None:
    db.set_many({"a": b"", "b": b"", "c": b""})
    assert db.delete("a", "b", "a") == 2
    assert db.delete("c", "no", missing_ok=True) == 1
    assert db.delete("c", missing_ok=True) == 0
    assert db.delete() == 0


def test_delete_of_a_missing_key_deletes_nothing(db: kv.Client) -> None:
    db.set("a", b"1")
    with pytest.raises(kv.NotFound) as refused:
        db.delete("a", "no", "never")
    assert refused.value.keys == ["no", "never"]
    assert db.get("a") == b"1"


def test_scan_iterates_in_order_over_a_prefix_or_a_range(db: kv.Client) -> None:
    version = db.set_many(
        {key: key.encode() for key in ("user:1", "user:2", "user", "usf", "a", "\uffff", "\U00010000")}
    )
    assert list(db.scan("user:")) == [kv.Item("user:1", b"user:1", version), kv.Item("user:2", b"user:2", version)]
    assert keys(db.scan()) == ["a", "user", "user:1", "user:2", "usf", "\uffff", "\U00010000"]
    assert keys(db.scan(start="user:2", end="\uffff")) == ["user:2", "usf"]
    assert keys(db.scan("user", start="user:2")) == ["user:2"]
    assert keys(db.scan("user", end="user:2")) == ["user", "user:1"]
    assert keys(db.scan("user", start="a", end="z")) == ["user", "user:1", "user:2"]
    assert keys(db.scan("user", start="z")) == []
    assert keys(db.scan(limit=2)) == ["a", "user"]
    assert keys(db.scan(limit=0)) == []
    assert [item.value for item in db.scan("user:", keys_only=True)] == [None, None]


def test_scan_continues_over_pages_of_any_kind(db: kv.Client) -> None:
    names = [f"{number:05}" for number in range(2_500)]
    db.set_many(dict.fromkeys(names, b"x" * 300))  # 1,000 keys, or 256 KiB, or the limit, whichever comes first
    assert keys(db.scan()) == names
    assert keys(db.scan(limit=1_999)) == names[:1_999]
    assert keys(db.scan(limit=1_000, keys_only=True)) == names[:1_000]
    db.delete(*names)
    assert keys(db.scan()) == []


def test_a_scan_of_a_version_is_of_one_instant(db: kv.Client) -> None:
    names = [f"{number:04}" for number in range(1_500)]
    at = db.set_many(dict.fromkeys(names, b"old"))
    scan = db.scan(at=at)
    first = next(scan)
    db.set_many(dict.fromkeys(names, b"new"))
    db.set("0000a", b"new")
    assert {item.value for item in (first, *scan)} == {b"old"}
    assert len(keys(db.scan(at=at))) == 1_500


# ---------------------------------------------------------------------- the daemon


def test_ping_returns(db: kv.Client) -> None:
    assert db.ping() is True


def test_metrics_count_operations(db: kv.Client) -> None:
    before = db.metrics()
    db.set_many({"a": b"123", "b": b"45"})
    db.get_many(["a", "b", "no"])
    db.delete("a")
    after = db.metrics()
    counts = [after[name] - before[name] for name in ("set_operations", "get_operations", "delete_operations")]
    assert counts == [2, 3, 1]
    assert (after["keys_stored"], after["value_bytes_stored"]) == (1, 2)


def test_status_and_server_pid_name_the_same_process(db: kv.Client, shared_daemon: "Daemon") -> None:
    assert db.server_pid() == shared_daemon.process.pid
    assert shared_daemon.process.pid in db.status().values()


def test_reload_returns_what_changed(db: kv.Client) -> None:
    assert all(isinstance(line, str) for line in db.reload())


def test_shutdown_returns_the_process_id_and_wait_for_end_waits(
    start_daemon: Callable[..., "Daemon"], codec: Codec
) -> None:
    daemon = start_daemon()
    with kv.connect(daemon.address, codec=codec) as db:
        assert db.wait_for_end(0), "not connected yet"
        db.ping()
        assert not db.wait_for_end(0)
        assert db.shutdown() == daemon.process.pid
        assert db.wait_for_end(30)
    assert daemon.process.wait(30) == 0
    with pytest.raises(kv.Unavailable):
        db.ping()


def test_the_client_reconnects_to_a_restarted_daemon(start_daemon: Callable[..., "Daemon"]) -> None:
    daemon = start_daemon()
    with kv.connect(daemon.address) as db:
        db.set("a", b"1")
        daemon.terminate()
        start_daemon()
        assert db.get("a") is None
        assert db.set("a", b"2") > 0


def test_a_closed_client_opens_another_connection(db: kv.Client) -> None:
    db.ping()
    db.close()
    db.close()
    db.ping()


def test_leaving_the_block_closes_the_connection(shared_daemon: "Daemon") -> None:
    with kv.connect(shared_daemon.address) as db:
        db.ping()
        connection = db._current_connection()._stream
        assert connection is not None
    assert connection._socket.fileno() == -1
    assert db._current_connection()._stream is None


# ---------------------------------------------------------------------- refusals


def test_a_request_over_a_limit_is_refused_and_the_connection_stays_open(db: kv.Client) -> None:
    with pytest.raises(kv.Refused) as refused:
        db.set("x" * 4_097, b"")
    assert (refused.value.code, refused.value.retryable, refused.value.maybe_committed) == ("too_large", False, False)
    with pytest.raises(kv.Refused) as refused:
        db.get("")
    assert refused.value.code == "bad_request"
    with pytest.raises(kv.Refused) as refused:
        db.set("a", b"x" * (8 * 2**20 + 1))
    assert refused.value.code == "too_large"
    assert db.get("a") is None


@pytest.mark.parametrize("connected", [True, False], ids=["at work", "fresh"])
def test_a_request_larger_than_a_frame_is_refused_as_too_large(db: kv.Client, connected: bool) -> None:
    """The daemon says why, and hangs up in the middle of the request."""
    if connected:
        db.ping()
    with pytest.raises(kv.Refused) as refused:
        db.set("a", b"x" * (17 * 2**20))
    assert (refused.value.code, refused.value.retryable, refused.value.maybe_committed) == ("too_large", False, False)
    assert db.get("a") is None


def test_a_version_that_does_not_exist_is_refused(db: kv.Client) -> None:
    with pytest.raises(kv.Refused, match="there is no version"):
        db.get_many(["a"], at=2**63)


def test_a_read_of_a_pruned_version_names_the_oldest_readable_one(
    start_daemon: Callable[..., "Daemon"], tmp_path: pathlib.Path
) -> None:
    (tmp_path / "kvd.toml").write_text("[history]\nmax_versions = 1\n")
    daemon = start_daemon("--config", str(tmp_path / "kvd.toml"))
    with kv.connect(daemon.address) as db:
        versions = [db.set("a", b"") for _ in range(10)]
        with pytest.raises(kv.SnapshotGone) as refused:
            db.get_many(["a"], at=versions[0])
        oldest = refused.value.fields["oldest_readable"]
        assert isinstance(oldest, int)
        assert versions[0] < oldest <= versions[-1]
        assert db.get_many(["a"], at=oldest) == {"a": b""}


@pytest.mark.parametrize("key", ["\udc80", "a\ud800b"])
def test_a_key_that_is_not_unicode_is_a_value_error_and_the_connection_stays_open(db: kv.Client, key: str) -> None:
    db.set("a", b"1")
    connection = db._current_connection()._stream
    for call in (
        lambda: db.get(key), lambda: db.set(key, b""), lambda: db.delete(key), lambda: db.get_many(["a", key]),
        lambda: list(db.scan(key)), lambda: db.set_many({"b": b"", key: b""}),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="surrogates not allowed"):
            call()  # type: ignore[no-untyped-call]
    assert (db.get("a"), db.get("b")) == (b"1", None)
    assert db._current_connection()._stream is connection is not None


@pytest.mark.parametrize("value", ["text", None, 1, ["a"], object()], ids=str)
def test_a_value_that_is_not_bytes_is_a_type_error(db: kv.Client, value: Any) -> None:  # noqa: ANN401
    for call in (lambda: db.set("a", value), lambda: db.set_many({"b": b"", "a": value})):
        with pytest.raises(TypeError, match=f"a value is bytes, not {type(value).__name__}"):
            call()
    assert keys(db.scan()) == []


def test_a_duration_of_another_type_is_a_type_error(either: kv.Client) -> None:
    with pytest.raises(TypeError, match="a duration is seconds or a timedelta, not str"):
        either.set("a", b"", ttl="5m")  # type: ignore[arg-type]


def test_anything_like_bytes_is_a_value(db: kv.Client) -> None:
    db.set_many({"a": bytearray(b"1"), "b": memoryview(b"2")})  # type: ignore[dict-item]
    assert db.get_many(["a", "b"]) == {"a": b"1", "b": b"2"}


@pytest.mark.parametrize("key", [1, None, b"a", ["a"]], ids=str)
def test_a_key_that_is_not_text_is_refused_before_it_is_sent(db: kv.Client, key: Any) -> None:  # noqa: ANN401
    with pytest.raises(TypeError, match="a key is a string, not"):
        db.get(key)
    assert db.get("a") is None


# ---------------------------------------------------------------------- addresses


@pytest.mark.parametrize("address", ["tcp://", "tcp://host", "tcp://host:port", "tcp://:1", "tcp://host:65536"])
def test_a_malformed_address_is_a_value_error_at_once(address: str) -> None:
    with pytest.raises(ValueError, match="not HOST:PORT"):
        kv.connect(address)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("/nonexistent/kvd.sock", "no such socket"), ("/dev/null", "no process listens there"),
        ("", "Invalid argument"), ("x" * 108, "107 bytes"), ("tcp://127.0.0.1:1", "no process listens there"),
        ("tcp://a..b:1", "not a host's name"), (f"tcp://{'x' * 64}:1", "not a host's name"),
    ],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_without_a_daemon_the_error_says_where_and_why(address: str, reason: str) -> None:
    with pytest.raises(kv.Unavailable, match=reason) as failed:
        kv.connect(address).set("a", b"1")
    assert failed.value.tried == [address]
    assert address in str(failed.value)
    assert ("kv serve --daemon --socket " in str(failed.value)) == (not address.startswith("tcp"))


def test_a_socket_without_a_listener_is_named(tmp_path: pathlib.Path) -> None:
    with socket.socket(socket.AF_UNIX) as abandoned:
        abandoned.bind(f"{tmp_path}/kvd.sock")
    with pytest.raises(kv.Unavailable, match="no process listens there"):
        kv.connect(f"{tmp_path}/kvd.sock").ping()


def test_the_default_address_is_from_the_environment_then_the_users_own(
    shared_daemon: "Daemon", tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVD_SOCKET", shared_daemon.address)
    with kv.connect() as db:
        db.ping()
    monkeypatch.setenv("KVD_SOCKET", "")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr("os.getuid", lambda: 1234)
    (tmp_path / "kvd").mkdir()
    (tmp_path / "kvd/kvd.sock").symlink_to(shared_daemon.address)
    with kv.connect() as db:
        db.ping()


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan"), 1e10])
def test_a_timeout_out_of_range_is_a_value_error_at_once(timeout: float) -> None:
    with pytest.raises(ValueError, match="a timeout is"):
        kv.connect("/nonexistent", timeout=timeout)


@pytest.mark.parametrize("connected", [True, False], ids=["at work", "fresh"])
def test_a_tiny_timeout_is_an_ordinary_error(shared_daemon: "Daemon", connected: bool) -> None:
    with kv.connect(shared_daemon.address) as db:
        if connected:
            db.ping()
        db.settings = kv.ClientSettings(shared_daemon.address, timeout=1e-9)
        for call in (lambda: db.set("never", b""), lambda: db.get("a")):
            with pytest.raises((kv.TimedOut, kv.Unavailable)) as failed:
                call()
            assert (failed.value.retryable, failed.value.maybe_committed) == (True, False)
        db.settings = kv.ClientSettings(shared_daemon.address, timeout=30)
        assert db.get("never") is None


# ---------------------------------------------------------------------- TCP


@pytest.fixture
def tcp(start_daemon: Callable[..., "Daemon"], tmp_path: pathlib.Path) -> tuple[str, str]:
    """The TCP address of a daemon, and its token file."""
    token = tmp_path / "token"
    token.write_text("s3cret-and-long-enough\n")
    token.chmod(0o600)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start_daemon("--tcp", f"127.0.0.1:{port}", "--token-file", str(token))
    return f"tcp://127.0.0.1:{port}", str(token)


def test_over_tcp_the_token_admits_the_client(
    tcp: tuple[str, str], codec: Codec, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, token = tcp
    with kv.connect(address, token_file=token, codec=codec) as db:
        db.set("a", BINARY)
        assert db.get("a") == BINARY
        assert db.server_pid() is None
        with pytest.raises(kv.Forbidden):
            db.shutdown()
        db.ping()
    monkeypatch.setenv("KVD_TOKEN_FILE", token)
    with kv.connect(address, codec=codec) as db:
        db.ping()
    wrong = tmp_path / "wrong"
    wrong.write_text("something else")
    for file in (str(wrong), "/dev/null"):
        with kv.connect(address, token_file=file, codec=codec) as db, pytest.raises(kv.Forbidden, match="token"):
            db.ping()


def test_an_unreadable_token_file_is_named(tcp: tuple[str, str], tmp_path: pathlib.Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff")
    for name in ("missing", "binary"):
        path = str(tmp_path / name)
        with kv.connect(tcp[0], token_file=path) as db, pytest.raises(kv.KvdError, match=path) as failed:
            db.ping()
        assert failed.value.code == "token_file"
