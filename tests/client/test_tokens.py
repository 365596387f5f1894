"""What a client shows of itself over TCP, and whom it believes."""

import pathlib

import pytest

import kv
from kv.blocking.tls import context
from kvd.protocol.address import is_loopback


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.255.0.9", "[::1]"])
def test_a_token_may_go_to_this_host_in_clear(host: str, tmp_path: pathlib.Path) -> None:
    assert is_loopback(f"tcp://{host}:1")
    token = tmp_path / "token"
    token.write_text("a-token-of-thirty-two-characters")
    settings = kv.ClientSettings(f"tcp://{host}:1", token_file=str(token))
    assert settings.token_for(f"tcp://{host}:1") == token.read_text()


@pytest.mark.parametrize("host", ["10.0.0.1", "127.0.0.1.example.org", "example.org", "1270.0.0.1", "127.0.0", "[::2]"])
def test_a_token_never_goes_to_another_host_in_clear(host: str, tmp_path: pathlib.Path) -> None:
    assert not is_loopback(f"tcp://{host}:1")
    token = tmp_path / "token"
    token.write_text("a-token-of-thirty-two-characters")
    settings = kv.ClientSettings(f"tcp://{host}:1", token_file=str(token))
    with pytest.raises(kv.KvdError, match="in clear: write tls://"):
        settings.token_for(f"tcp://{host}:1")
    assert settings.token_for(f"tls://{host}:1") == token.read_text()


def test_the_name_in_a_certificate_counts_only_where_host_names_stand() -> None:
    assert not context(None).hostname_checks_common_name
