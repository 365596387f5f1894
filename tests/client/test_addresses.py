"""The forms in which an address may be written: by a program, in $KVD_SOCKET, with --socket, for kv serve."""

import os
import pathlib

import pytest

import kv
from kvd.protocol.address import normalize
from tests.harness.daemon import Daemon
from tests.harness.processes import KV, environment, run_python, spawn
from tests.harness.waiting import DEADLINE_S, eventually

HOME = os.path.expanduser("~")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("/run/x", "/run/x"),
        ("x", "x"),
        ("a:b/c", "a:b/c"),
        ("./x:7070", "./x:7070"),
        ("x:y", "x:y"),
        ("unix:///run/x", "/run/x"),
        ("UNIX:///run/x", "/run/x"),
        ("unix:/run/x", "/run/x"),
        ("~/s", f"{HOME}/s"),
        ("unix://~/s", f"{HOME}/s"),
        ("tcp://h:1", "tcp://h:1"),
        ("TCP://h:1", "tcp://h:1"),
        ("Tls://[::1]:7070", "tls://[::1]:7070"),
    ],
)
def test_an_address_is_understood(written: str, meant: str) -> None:
    assert normalize(written) == meant
    assert kv.ClientSettings(written).address == meant


@pytest.mark.parametrize(
    ("written", "advice"),
    [
        ("", "cannot be empty"),
        ("127.0.0.1:7070", "write tcp://127.0.0.1:7070"),
        ("localhost:7070", "write tcp://localhost:7070"),
        ("[::1]:7070", r"write tcp://\[::1\]:7070"),
        ("http://x:1", "neither tcp://HOST:PORT nor tls://HOST:PORT nor a socket's path"),
        ("redis://x", "neither tcp"),
        ("unix://run/x", "write unix:///PATH"),
        ("unix:", "write unix:///PATH"),
        ("tcp://x", "not HOST:PORT"),
        ("tcp://x:99999", "not HOST:PORT"),
        ("tcp://x:" + "9" * 5_000, "not HOST:PORT"),
    ],
)
def test_what_is_no_address_is_refused_with_advice(written: str, advice: str) -> None:
    for connect in (kv.connect, kv.aio.connect):
        with pytest.raises(ValueError, match=advice):
            connect(written)


def test_a_directory_is_named_as_one(tmp_path: pathlib.Path) -> None:
    with pytest.raises(kv.Unavailable, match="a directory: name the socket in it"):
        kv.connect(str(tmp_path)).ping()


def test_every_form_reaches_the_daemon(shared_daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shared_daemon.address
    monkeypatch.setenv("HOME", os.path.dirname(path))
    for form in (f"unix://{path}", f"unix:{path}", f"~/{os.path.basename(path)}"):
        assert kv.connect(form, timeout=DEADLINE_S).ping()
        monkeypatch.setenv("KVD_SOCKET", form)
        assert kv.connect(timeout=DEADLINE_S).ping()
        monkeypatch.delenv("KVD_SOCKET")
        command = [*KV, "--timeout", "60", "-s", form, "ping"]
        assert spawn(*command, env=environment(HOME=os.path.dirname(path))).wait(DEADLINE_S) == 0


@pytest.mark.parametrize("variable", [False, True])
def test_the_command_says_what_to_write(variable: bool) -> None:
    words = "KVD_SOCKET='127.0.0.1:1'" if variable else ""
    code = f"""import os, subprocess, sys
environment = {{**os.environ, **dict({words})}}
flag = [] if {variable} else ["-s", "127.0.0.1:1"]
done = subprocess.run([sys.executable, "-m", "kv", *flag, "ping"], capture_output=True, text=True, env=environment)
print(done.returncode, done.stderr)
"""
    assert run_python(code).stdout.startswith(b"2 kv: error: for TCP write tcp://127.0.0.1:1")


def test_serve_takes_the_same_forms(tmp_path: pathlib.Path) -> None:
    for form in (f"unix://{tmp_path}/a", "~/b"):
        path = tmp_path / ("a" if form.startswith("unix") else "b")
        daemon = spawn(*KV, "serve", "-s", form, env=environment(HOME=str(tmp_path)), cwd=tmp_path)
        try:
            with kv.connect(str(path), timeout=DEADLINE_S) as db:
                wait_for(db)
        finally:
            daemon.terminate()
            assert daemon.wait(DEADLINE_S) == 0
    assert not (tmp_path / "unix:").exists()


def wait_for(db: kv.Client) -> None:
    def answers() -> bool:
        try:
            return db.ping()
        except kv.Unavailable:
            return False

    eventually(answers)


@pytest.mark.parametrize("form", ["tcp://127.0.0.1:1", "TLS://x:1", "127.0.0.1:1", "http://x/y"])
def test_serve_refuses_what_is_no_path(tmp_path: pathlib.Path, form: str) -> None:
    assert spawn(*KV, "serve", "--check-config", "-s", form, cwd=tmp_path).wait(DEADLINE_S) in (2, 78)
