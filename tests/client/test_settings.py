"""ClientSettings: what a client was made with, checked and fixed; and ``access``, as the CLI uses it."""

from typing import Any

import pytest

import kv
from kv.settings import DEFAULT_TIMEOUT_S


def test_a_client_has_the_settings_that_it_was_made_with(open_client: Any) -> None:  # noqa: ANN401
    db = open_client("/nonexistent", timeout=3, token_file="/token")  # noqa: S106  # a path
    assert (db.settings.address, db.settings.timeout, db.settings.token_file) == ("/nonexistent", 3, "/token")
    assert (db.settings.tls, db.settings.busy_poll_us) == (None, 0)
    assert kv.ClientSettings().timeout == DEFAULT_TIMEOUT_S


def test_settings_cannot_be_changed() -> None:
    settings: Any = kv.ClientSettings("/nonexistent")
    for change in (lambda: setattr(settings, "timeout", 3), lambda: delattr(settings, "timeout")):
        with pytest.raises(AttributeError, match="cannot be changed"):
            change()
    with pytest.raises(AttributeError):
        settings.__dict__  # noqa: B018
    assert settings.timeout == DEFAULT_TIMEOUT_S


@pytest.mark.parametrize(
    "wrong", [{"address": "tcp://host"}, {"timeout": 0}, {"timeout": -1}, {"busy_poll_us": -1}], ids=str
)
def test_malformed_settings_are_a_value_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not "):
        kv.ClientSettings(**wrong)


def test_a_token_is_shown_over_tcp_only(tmp_path: Any) -> None:  # noqa: ANN401
    (tmp_path / "token").write_text("s3cret\n")
    settings = kv.ClientSettings(token_file=str(tmp_path / "token"))
    assert settings.token_for("tcp://127.0.0.1:1") == settings.token_for("tls://host:1") == "s3cret"
    assert settings.token_for("/run/kvd.sock") is None
    assert "s3cret" not in repr(settings)


def test_access_returns_rights_reason_and_rules(either: kv.Client) -> None:
    access = either.access("a", uid=33, gids=[33])
    assert access["rights"][:2] == ["read", "write"]
    assert access["reason"]
    assert access["rules"] == []
    assert either.access("a", token="ci")["rights"] == access["rights"]  # noqa: S106  # a name
    assert either.access("a", certificate="web")["rights"] == access["rights"]
