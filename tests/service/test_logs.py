"""The log: one line for each record whatever a client put into it, in the right place, readable only for its owner."""

import io
import logging
import os
import pathlib
import re
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress

import msgspec
import pytest

from kvd.service import logs
from kvd.service.config.sections import Config, Log
from kvd.service.errors import StartError

Python = Callable[..., "subprocess.CompletedProcess[bytes]"]
LINE = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO (.*)\n$")
# What a client might put into a name, and how it is logged.
HOSTILE = {
    "a\nb": r"a\nb",
    "a\r\nb": r"a\r\nb",
    "\x1b[2J": r"\x1b[2J",
    "\0\x7f\x85": r"\x00\x7f\x85",
    "\u2028\u202e": r"\u2028\u202e",
    "\udcff": r"\udcff",
    "🎂 é": "🎂 é",
}


def record(message: object, *arguments: object, level: int = logging.INFO) -> logging.LogRecord:
    return logging.LogRecord("kvd", level, "file.py", 1, message, arguments, None)


def configured(level: str = "info", to: str = "auto") -> Config:
    return msgspec.structs.replace(Config(), log=Log(level=level, to=to))


@pytest.fixture(autouse=True)
def _root_logger() -> Iterator[None]:
    """Restore the root logger after the test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def path(tmp_path: pathlib.Path) -> str:
    return str(tmp_path / "kvd.log")


@pytest.fixture
def handler(path: str) -> Iterator[logging.Handler]:
    handler = logs.open_handler(path)
    yield handler
    handler.close()


def text_of(path: str) -> str:
    return pathlib.Path(path).read_text(encoding="utf-8")


# ---------------------------------------------------------------------- one line for each record


@pytest.mark.parametrize(("text", "written"), HOSTILE.items())
def test_a_record_is_one_line_whatever_it_contains(
    text: str, written: str, handler: logging.Handler, path: str
) -> None:
    handler.handle(record("peer %s refused", text))
    found = LINE.match(text_of(path))
    assert found is not None
    assert found[1] == f"peer {written} refused"


def test_a_traceback_stays_in_the_line_of_its_record(handler: logging.Handler, path: str) -> None:
    failed = record("failed")
    try:
        raise ValueError("forged\n2026-01-01 00:00:00,000 INFO all is well")
    except ValueError as error:
        failed.exc_info = (ValueError, error, error.__traceback__)
    handler.handle(failed)
    assert text_of(path).count("\n") == 1
    assert r"ValueError: forged\n2026-01-01" in text_of(path)


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.DEBUG, 7), (logging.INFO, 6), (logging.WARNING, 4), (logging.ERROR, 3), (logging.CRITICAL, 2), (35, 6)],
)
def test_the_journal_gets_one_line_with_its_priority(level: int, priority: int) -> None:
    text = logs.Journal("%(message)s").format(record("forged\n<0>panic", level=level))
    assert text == rf"<{priority}>forged\n<0>panic"


# ---------------------------------------------------------------------- targets

TO_STDERR = """
import logging, os
from kvd.service import logs
from kvd.service.config.sections import Config
handler = logs.open_handler("stderr")
logs.start(handler, Config())
logging.getLogger("kvd").warning("a key: %s", "caf\\u00e9 \\n")
"""


def test_stderr_gets_lines_for_people(python: Python) -> None:
    line = python(TO_STDERR).stderr.decode()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} WARNING a key: café \\n\n", line)


def test_stderr_gets_lines_for_the_journal_if_it_is_the_journal(python: Python) -> None:
    reading, writing = os.pipe()
    found = os.fstat(writing)
    environ = os.environ | {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}", "PYTHONUTF8": "1"}
    python(TO_STDERR, capture_output=False, stderr=writing, env=environ)
    os.close(writing)
    with open(reading, encoding="utf-8") as pipe:
        assert pipe.read() == "<4>a key: café \\n\n"


def test_syslog_gets_lines_of_the_daemon_facility(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(str(tmp_path / "log"))
        monkeypatch.setattr(logs, "SYSLOG_SOCKET", str(tmp_path / "log"))
        handler = logs.open_handler("syslog")
        handler.handle(record("a\nb", level=logging.ERROR))
        handler.close()
        # daemon is facility 3, err priority 3: 3 * 8 + 3.
        assert syslog.recv(1000) == f"<27>kvd[{os.getpid()}]: a\\nb\0".encode()


def test_a_missing_syslog_is_an_io_error(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "SYSLOG_SOCKET", str(tmp_path / "missing"))
    with pytest.raises(StartError, match="cannot write the log to syslog: no process listens at /") as failure:
        logs.open_handler("syslog")
    assert failure.value.exit_code == 74


@pytest.mark.parametrize("to", ["syslog", "/a/file"])
def test_a_configured_target_also_holds_for_daemons(to: str) -> None:
    assert logs.log_target(configured(to=to), daemon=False) == to
    assert logs.log_target(configured(to=to), daemon=True) == to


def test_auto_is_stderr_in_the_foreground_and_a_file_for_a_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    assert logs.log_target(configured(), daemon=False) == "stderr"
    monkeypatch.setattr(os, "getuid", lambda: 0)
    assert logs.log_target(configured(), daemon=True) == "/var/log/kvd.log"
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    assert logs.log_target(configured(), daemon=True) == "/home/ann/.local/state/kvd/kvd.log"


def test_a_daemon_cannot_log_to_stderr() -> None:
    """The log would be lost silently, because a daemon's stderr is /dev/null once it is ready."""
    assert logs.log_target(configured(to="stderr"), daemon=False) == "stderr"
    with pytest.raises(StartError, match="a daemon has no stderr") as failure:
        logs.log_target(configured(to="stderr"), daemon=True)
    assert failure.value.exit_code == 78


# ---------------------------------------------------------------------- a file


def mode_of(path: str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def test_a_log_file_and_its_directories_are_private(tmp_path: pathlib.Path) -> None:
    before = os.umask(0)
    try:
        path = f"{tmp_path}/a/b/kvd.log"
        handler = logs.open_handler(path)
        assert [mode_of(path), mode_of(f"{tmp_path}/a/b"), mode_of(f"{tmp_path}/a")] == [0o600, 0o700, 0o700]
        os.unlink(path)
        handler.handle(record("again"))
        assert mode_of(path) == 0o600
        handler.close()
    finally:
        os.umask(before)


def test_records_are_appended_to_an_existing_file(path: str) -> None:
    pathlib.Path(path).write_text("before\n", encoding="ascii")
    handler = logs.open_handler(path)
    handler.handle(record("after"))
    handler.close()
    assert re.fullmatch(r"before\n.* after\n", text_of(path))


def test_a_new_file_is_opened_after_the_old_one_was_moved_away(handler: logging.Handler, path: str) -> None:
    handler.handle(record("one"))
    os.rename(path, f"{path}.1")
    handler.handle(record("two"))
    assert text_of(f"{path}.1").endswith(" one\n")
    assert text_of(path).endswith(" two\n")
    assert text_of(path).count("\n") == 1


def test_a_record_that_cannot_be_written_is_lost_without_an_error(tmp_path: pathlib.Path) -> None:
    """The directory is missing for a while. Logging raises no error, and later records are written again."""
    path = f"{tmp_path}/logs/kvd.log"
    handler = logs.open_handler(path)
    os.rename(f"{tmp_path}/logs", f"{tmp_path}/away")
    handler.handle(record("lost"))
    os.mkdir(f"{tmp_path}/logs")
    handler.handle(record("found"))
    handler.close()
    assert text_of(path).endswith(" found\n")
    assert "lost" not in text_of(path) + text_of(f"{tmp_path}/away/kvd.log")


def test_a_full_disk_raises_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    handler = logs.open_handler("/dev/full")
    handler.handle(record("lost"))
    assert "No space left on device" in capsys.readouterr().err
    with suppress(OSError):  # closing it writes the record again
        handler.stream.close()  # type: ignore[attr-defined]
    handler.stream = None  # type: ignore[attr-defined]
    handler.close()


def test_a_file_is_utf_8_in_every_locale(path: str, python: Python) -> None:
    code = TO_STDERR.replace('"stderr"', "__import__('sys').argv[1]")
    result = python(code, path, env=os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})
    assert result.stderr == b""
    assert "a key: café" in text_of(path)


@pytest.mark.parametrize("kind", ["directory", "fifo", "below a file"])
def test_a_file_that_cannot_be_opened_is_an_io_error_at_once(path: str, kind: str) -> None:
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        os.mkdir(path)
    else:
        pathlib.Path(path).write_text("", encoding="ascii")
        path += "/kvd.log"
    with pytest.raises(StartError, match=r"^cannot (write the log to|make the directory) ") as failure:
        logs.open_handler(path)
    assert failure.value.exit_code == 74


# ---------------------------------------------------------------------- the handler in the process


def test_the_descriptor_to_preserve_is_the_log_files(handler: logging.Handler, path: str) -> None:
    (descriptor,) = logs.descriptors(handler)
    assert os.path.samestat(os.fstat(descriptor), os.stat(path))


def test_the_descriptor_of_syslog_is_preserved_too(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(str(tmp_path / "log"))
        monkeypatch.setattr(logs, "SYSLOG_SOCKET", str(tmp_path / "log"))
        handler = logs.open_handler("syslog")
        (descriptor,) = logs.descriptors(handler)
        with socket.socket(fileno=os.dup(descriptor)) as its:
            assert its.getpeername() == str(tmp_path / "log")
        handler.close()


def test_records_from_the_level_up_go_only_to_this_handler(handler: logging.Handler, path: str) -> None:
    other = io.StringIO()
    logging.getLogger().addHandler(logging.StreamHandler(other))
    logs.start(handler, configured("warning"))
    logger = logging.getLogger("kvd.anything")
    logger.info("no")
    logger.warning("yes")
    logs.apply_level(configured("debug"))
    logger.debug("now")
    assert [line.split()[-1] for line in text_of(path).splitlines()] == ["yes", "now"]
    assert other.getvalue() == ""
