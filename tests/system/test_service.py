"""kvd under a real systemd: each test has a machine of its own, where `make install` has run."""

import pathlib
from typing import TYPE_CHECKING

import httptools
import pytest

from tests.harness.programs import require
from tests.harness.scale import TIMES

if TYPE_CHECKING:
    from tests.system.conftest import Box

LOAD = pathlib.Path(__file__).parent / "load.py"


def test_the_first_request_starts_the_service_and_is_answered(box: "Box") -> None:
    assert box("! systemctl is-active kvd.service; kv ping; systemctl is-active kvd.service").stdout.split() == [
        "inactive", "ok", "active",
    ]  # fmt: skip


def test_start_returns_when_the_daemon_is_ready_and_the_status_shows_its_address(box: "Box") -> None:
    result = box("systemctl start kvd.service; systemctl show --property=ActiveState,SubState,StatusText kvd.service")
    assert sorted(result.stdout.splitlines()) == [
        "ActiveState=active", "StatusText=serving on /run/kvd/kvd.sock", "SubState=running",
    ]  # fmt: skip


def test_the_daemon_runs_as_its_own_user_without_network_or_privileges(box: "Box") -> None:
    result = box(
        "kv ping; grep -E '^(Uid|Gid|Groups|CapEff|NoNewPrivs|Seccomp):' /proc/$(pid)/status;"
        "id -u kvd; readlink /proc/$(pid)/ns/net /proc/self/ns/net | sort --unique | wc --lines"
    )
    fields = dict(line.split(":", 1) for line in result.stdout.splitlines() if ":" in line)
    uid, networks = result.stdout.splitlines()[-2:]
    assert fields["Uid"].split() == [uid] * 4
    assert fields["CapEff"].strip() == "0" * 16
    assert (fields["NoNewPrivs"].strip(), fields["Seccomp"].strip(), networks) == ("1", "2", "2")


def test_a_member_of_the_group_sets_and_gets(box: "Box") -> None:
    assert box("as alice kv set cake=🎂; as alice kv get cake").stdout == "Keys set\ncake: 🎂\n"


def test_a_user_outside_the_group_is_denied_by_the_kernel_with_4(box: "Box") -> None:
    result = box("kv set cake=1; as bob kv get cake || echo $?")
    assert result.stdout == "Keys set\n4\n"
    assert "permission denied: /run/kvd/kvd.sock" in result.stderr


def test_a_member_of_the_group_is_no_administrator_and_is_named_in_the_journal(box: "Box") -> None:
    result = box("as alice kv ping; as alice kv shutdown || echo $?; kv ping; id -u alice; logged --priority=warning")
    *lines, uid, warning = result.stdout.splitlines()
    assert lines == ["ok", "4", "ok"]
    assert warning.startswith(f"refused uid {uid} ")


def test_reload_applies_a_changed_configuration_to_the_running_daemon(box: "Box") -> None:
    result = box(
        "kv set cake=1; before=$(pid); mkdir /etc/kvd; printf '[limits]\\nmax_key_bytes = 10\\n' >/etc/kvd/kvd.toml;"
        "systemctl reload kvd.service; kv set 12345678901=x || echo $?; kv get cake; [ $before = $(pid) ];"
        "logged"
    )
    assert result.stdout.splitlines()[:3] == ["Keys set", "5", "cake: 1"]
    assert "limits.max_key_bytes: 4096 → 10" in result.stdout


def test_reload_refuses_an_invalid_configuration_with_the_reason_and_the_daemon_keeps_running(box: "Box") -> None:
    result = box(
        "kv set cake=1; before=$(pid); mkdir /etc/kvd; printf '[limits]\\nmax_connections = 0\\n' >/etc/kvd/kvd.toml;"
        "systemctl reload kvd.service || echo refused $?; kv get cake; [ $before = $(pid) ];"
        "journalctl --sync; systemctl status --lines=10 --full kvd.service"
    )
    assert result.stdout.splitlines()[:3] == ["Keys set", "refused 1", "cake: 1"]
    assert "kv: error: nothing was changed: " in result.stdout
    assert "limits.max_connections" in result.stdout


def test_a_daemon_with_an_invalid_configuration_does_not_start_and_is_not_restarted(box: "Box") -> None:
    result = box(
        "mkdir /etc/kvd; printf '[limits]\\nmax_connections = 0\\n' >/etc/kvd/kvd.toml;"
        "systemctl start kvd.service || systemctl show --property=Result,ExecMainStatus,ActiveState kvd.service;"
        "logged"
    )
    assert {"Result=exit-code", "ExecMainStatus=78", "ActiveState=failed"} <= set(result.stdout.splitlines())
    assert "limits.max_connections" in result.stdout


def test_after_kill_9_another_daemon_answers_a_request(box: "Box") -> None:
    result = box("kv ping; before=$(pid); kill -KILL $before; kv set cake=1; kv get cake; [ $before != $(pid) ]")
    assert result.stdout == "ok\nKeys set\ncake: 1\n"


def test_after_kill_9_the_daemon_is_restarted_without_a_request(box: "Box") -> None:
    result = box(
        "kv ping; kill -KILL $(pid);"
        "restarted() { [ $(systemctl show --property=NRestarts --value kvd.service) = 1 ]; };"
        "until_true restarted; until_true systemctl is-active kvd.service; kv ping"
    )
    assert result.stdout == "ok\nok\n"


def test_a_hanging_daemon_is_replaced_by_the_watchdog(box: "Box") -> None:
    result = box(
        "mkdir /run/systemd/system/kvd.service.d;"
        "printf '[Service]\\nWatchdogSec=1s\\nTimeoutAbortSec=5s\\n' >/run/systemd/system/kvd.service.d/short.conf;"
        "systemctl daemon-reload; kv ping; before=$(pid); kill -STOP $before;"
        "replaced() { [ $(pid) != $before ] && [ $(pid) != 0 ]; }; until_true replaced; kv ping;"
        "logged"
    )
    assert result.stdout.startswith("ok\nok\n")
    assert "Watchdog timeout" in result.stdout


def test_the_watchdog_does_not_restart_a_healthy_daemon(box: "Box") -> None:
    result = box(
        "mkdir /run/systemd/system/kvd.service.d;"
        "printf '[Service]\\nWatchdogSec=1s\\n' >/run/systemd/system/kvd.service.d/short.conf;"
        "systemctl daemon-reload; kv ping; before=$(pid);"
        "fed() { [ $(systemctl show --property=WatchdogTimestampMonotonic --value kvd.service) -gt $1 ]; };"
        "for _ in 1 2 3 4 5 6 7 8; do"
        "    until_true fed $(systemctl show --property=WatchdogTimestampMonotonic --value kvd.service); done;"
        "[ $before = $(pid) ]; kv ping"
    )
    assert result.stdout == "ok\nok\n"


def test_after_a_stop_of_the_service_its_socket_starts_it_again(box: "Box") -> None:
    result = box(
        "kv ping; systemctl stop kvd.service; systemctl is-active kvd.socket; test -S /run/kvd/kvd.sock; kv ping"
    )
    assert result.stdout == "ok\nactive\nok\n"


def test_a_stop_of_service_and_socket_ends_both(box: "Box") -> None:
    result = box("kv ping; systemctl stop kvd.socket kvd.service; kv ping || echo $?; ls /run/kvd")
    assert result.stdout.splitlines()[:2] == ["ok", "69"]
    assert "kvd.sock.lock" not in result.stdout


def test_tcp_through_the_socket_unit_needs_the_token(box: "Box") -> None:
    result = box(
        "mkdir /etc/kvd; printf '[listen]\\ntoken_file = \"token\"\\n' >/etc/kvd/kvd.toml;"
        "(umask 077; echo sixteen-letters-and-more >/etc/kvd/token); chown kvd /etc/kvd/token;"
        "mkdir /run/systemd/system/kvd.socket.d;"
        "printf '[Socket]\\nListenStream=127.0.0.1:7070\\n' >/run/systemd/system/kvd.socket.d/tcp.conf;"
        "systemctl daemon-reload; systemctl restart kvd.socket;"
        "export KVD_SOCKET=tcp://127.0.0.1:7070; kv --token-file /etc/kvd/token ping; kv ping || echo $?"
    )
    assert result.stdout == "ok\n4\n"


def test_http_through_its_socket_unit_starts_the_daemon_and_outlives_it(box: "Box") -> None:
    require("curl")
    library = pathlib.Path(httptools.__file__).parent
    result = box(
        f"cp -r {library} /usr/local/lib/kvd/lib/python3*/site-packages/;"
        "mkdir /etc/kvd; printf '[http]\nopen = true\n' >/etc/kvd/kvd.toml;"
        "mkdir /run/systemd/system/kvd-http.socket.d;"
        "printf '[Socket]\nListenStream=/run/kvd/http.sock\n' >/run/systemd/system/kvd-http.socket.d/more.conf;"
        "systemctl daemon-reload; systemctl start kvd-http.socket;"
        "curl --silent --request PUT --data 1 http://127.0.0.1:4000/v1/cake; kv get cake;"
        "systemctl stop kvd.service; curl --silent --unix-socket /run/kvd/http.sock http://localhost/v1/cake"
    )
    assert result.stdout == "cake: 1\n1"


def test_acknowledged_commits_survive_a_restart_and_kill_9(box: "Box") -> None:
    result = box(
        "kv set cake=1; systemctl restart kvd.service; kv get cake; kv set more=2; kill -9 $(pid);"
        "kv get cake more; stat --format='%a %U' /var/lib/kvd; ls /var/lib/kvd | grep --count log"
    )
    lines = result.stdout.splitlines()
    assert lines[:5] == ["Keys set", "cake: 1", "Keys set", "cake: 1", "more: 2"]
    assert lines[5] == "700 kvd"
    assert int(lines[6]) >= 1


@pytest.mark.parametrize("restarts", [3 * TIMES])
def test_restarts_under_load_lose_no_request(box: "Box", restarts: int) -> None:
    figures = box(f"/usr/local/lib/kvd/bin/python {LOAD} {restarts}").stdout.split()
    assert figures[0] == f"restarts={restarts}"
    assert figures[2:] == ["failed=0"]
    assert int(figures[1].removeprefix("requests=")) > 1000


def test_a_user_has_a_daemon_of_their_own(box: "Box") -> None:
    result = box(
        "loginctl enable-linger bob; export XDG_RUNTIME_DIR=/run/user/$(id -u bob);"
        "until_true test -S $XDG_RUNTIME_DIR/bus;"
        "as bob systemctl --user start kvd.socket; as bob kv set cake=1; as bob kv get cake;"
        "as bob systemctl --user is-active kvd.service; as bob systemctl --user reload kvd.service;"
        "as bob systemctl --user stop kvd.service; as bob kv ping; stat --format=%a $XDG_RUNTIME_DIR/kvd/kvd.sock;"
        "as bob kv get cake; stat --format=%a /home/bob/.local/state/kvd/data"
    )
    assert result.stdout == "Keys set\ncake: 1\nactive\nok\n600\ncake: 1\n700\n"
