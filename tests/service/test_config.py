"""The configuration: which source wins, what is refused and in which words, what a reload may change."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import pytest

from kvd.protocol.address import default_socket
from kvd.protocol.limits import Limits
from kvd.requests.access import AccessRule
from kvd.service.config.changes import changes
from kvd.service.config.file import standard_places
from kvd.service.config.loader import load
from kvd.service.config.options import BOUNDS, OPTIONS
from kvd.service.config.sections import Config, History, Listen, Log
from kvd.service.errors import ConfigError
from kvd.store.prefixes import PrefixRule

NOTHING: dict[str, str] = {}
Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a configuration file and returns its path."""

    def write(text: str | bytes = "", mode: int = 0o600, name: str = "kvd.toml") -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        path.chmod(mode)
        return str(path)

    return write


@pytest.fixture
def empty(write: Write) -> str:
    """An empty file, so that the machine's own configuration is not read."""
    return write(name="empty.toml")


def refusal(flags: Mapping[str, object], environ: Mapping[str, str], config_file: str | None) -> str:
    with pytest.raises(ConfigError) as failure:
        load(flags, environ, config_file)
    return str(failure.value)


# ---------------------------------------------------------------------- precedence


def test_without_any_source_every_option_has_its_default(empty: str) -> None:
    assert load({}, NOTHING, empty) == Config(listen=Listen(socket=default_socket()))


# For every option: a value for the file, for the environment and for a flag.
EXAMPLES: Mapping[str, tuple[str, str, object]] = {
    "listen.socket": ('"/a/file.sock"', "/a/variable.sock", "/a/flag.sock"),
    "listen.socket_mode": ('"0660"', "0666", "0640"),
    "listen.socket_group": ('"file"', "variable", "flag"),
    "listen.tcp": ('["127.0.0.1:1"]', "127.0.0.1:2", ["127.0.0.1:3"]),
    "listen.token_file": ('"/a/file"', "/a/variable", "/a/flag"),
    "listen.tls_certificate": ('"/a/file"', "/a/variable", "/a/flag"),
    "listen.tls_key": ('"/a/file"', "/a/variable", "/a/flag"),
    "listen.tls_client_ca": ('"/a/file"', "/a/variable", "/a/flag"),
    "http.listen": ('["/a/file"]', "/a/variable", ["/a/flag"]),
    "http.open": ("true", "true", True),
    "http.hosts": ('["file"]', "variable", ["flag"]),
    "data.dir": ('"/a/file"', "/a/variable", "/a/flag"),
    "data.sync": ('"always"', "interval", "never"),
    "log.level": ('"debug"', "warning", "error"),
    "log.to": ('"/a/file.log"', "syslog", "stderr"),
} | {key: (str(least + 1), str(least + 2), str(least + 3)) for key, (least, _) in BOUNDS.items()}
# The other options that an example needs to be valid.
COMPANIONS: dict[str, dict[str, str]] = {
    "listen.tls_key": {"KVD_TLS_CERTIFICATE": "/certificate"},
    "listen.tls_client_ca": {"KVD_TLS_CERTIFICATE": "/certificate"},
    "listen.tcp": {"KVD_TOKEN_FILE": "/token"},
    "http.open": {"KVD_HTTP": "/socket"},
    "limits.max_frame_bytes": {"KVD_LIMITS_MAX_KEY_BYTES": "1", "KVD_LIMITS_MAX_VALUE_BYTES": "1"},
    "limits.max_reply_bytes": {"KVD_LIMITS_MAX_VALUE_BYTES": "1"},
}


def as_value(key: str, example: object) -> object:
    if isinstance(OPTIONS[key].default, tuple):
        return tuple(example) if isinstance(example, list) else (str(example).strip('[]"'),)
    return type(OPTIONS[key].default)(str(example).strip('"'))


def get(config: Config, key: str) -> object:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


@pytest.mark.parametrize("key", OPTIONS)
def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(key: str, write: Write, empty: str) -> None:
    of_file, of_variable, of_flag = EXAMPLES[key]
    section, _, name = key.partition(".")
    file = write(f"[{section}]\n{name} = {of_file}")
    companions = COMPANIONS.get(key, {})
    environ = {OPTIONS[key].environment: of_variable} | companions
    default = default_socket() if key == "listen.socket" else OPTIONS[key].default
    assert get(load({key: of_flag}, environ, file), key) == as_value(key, of_flag)
    assert get(load({}, environ, file), key) == as_value(key, of_variable)
    assert get(load({}, companions, file), key) == as_value(key, of_file)
    assert get(load({}, companions, empty), key) == default


def test_an_absent_flag_and_an_empty_variable_set_nothing(write: Write) -> None:
    file = write('[log]\nlevel = "debug"')
    assert load({"log.level": None}, {"KVD_LOG_LEVEL": "", "KVD_LIMITS_MAX_CONNECTIONS": ""}, file).log.level == "debug"


def test_variables_of_the_client_and_of_other_programs_are_ignored(empty: str) -> None:
    environ = {
        "KVD_TIMEOUT": "3",
        "KVD_CA_FILE": "/ca",
        "KVD_DEBUG": "1",
        "KVD_CONFIG": empty,
        "HOME": "/root",
        "KVDX": "1",
    }
    assert load({}, environ, empty).log == Log()


def test_tcp_takes_several_addresses_from_flags_and_from_a_comma_separated_variable(empty: str) -> None:
    three = ("127.0.0.1:1", "[::1]:2", "localhost:3")
    environ = {"KVD_TOKEN_FILE": "/token", "KVD_TCP": "127.0.0.1:1, [::1]:2,localhost:3"}
    assert load({}, environ, empty).listen.tcp == three
    assert load({"listen.tcp": list(three)}, {"KVD_TOKEN_FILE": "/token"}, empty).listen.tcp == three


# ---------------------------------------------------------------------- where the file is, and whether it may be used


def test_the_config_flag_beats_kvd_config_beats_the_standard_places(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    write('[log]\nlevel = "error"', name="kvd/kvd.toml")
    variable = write('[log]\nlevel = "warning"', name="variable.toml")
    flag = write('[log]\nlevel = "debug"', name="flag.toml")
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert load({}, environ | {"KVD_CONFIG": variable}, flag).log.level == "debug"
    assert load({}, environ | {"KVD_CONFIG": variable}, None).log.level == "warning"
    assert load({}, environ, None).log.level == "error"


def test_the_standard_places_of_a_user_and_of_root() -> None:
    system = "/etc/kvd/kvd.toml"
    assert standard_places({"XDG_CONFIG_HOME": "/x", "HOME": "/h"}, 1000) == ["/x/kvd/kvd.toml", system]
    assert standard_places({"HOME": "/h"}, 1000) == ["/h/.config/kvd/kvd.toml", system]
    assert standard_places({"XDG_CONFIG_HOME": "relative", "HOME": "/h"}, 1000)[0] == "/h/.config/kvd/kvd.toml"
    assert standard_places({"XDG_CONFIG_HOME": "/x", "HOME": "/h"}, 0) == [system]


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.toml")
    assert refusal({}, NOTHING, missing) == f"--config: cannot read {missing}: No such file or directory"
    text = f"KVD_CONFIG: cannot read {missing}: No such file or directory"
    assert refusal({}, {"KVD_CONFIG": missing}, None) == text


def test_an_unreadable_standard_file_is_an_error_and_not_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    (tmp_path / "kvd").mkdir()
    # Unreadable even for root, whom permissions do not stop.
    (tmp_path / "kvd/kvd.toml").symlink_to("kvd.toml")
    text = refusal({}, {"XDG_CONFIG_HOME": str(tmp_path)}, None)
    assert text.startswith(f"cannot read {tmp_path}/kvd/kvd.toml: Too many levels of symbolic links")


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_other_users_can_write_is_refused_wherever_it_is_named(
    mode: int, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    file = write(mode=mode, name="kvd/kvd.toml")
    text = f"{file}: users other than its owner can write it (mode {mode:04o}); run: chmod go-w {file}"
    assert refusal({}, NOTHING, file) == text
    assert refusal({}, {"KVD_CONFIG": file}, None) == text
    assert refusal({}, {"XDG_CONFIG_HOME": str(tmp_path)}, None) == text


def test_a_file_that_other_users_can_only_read_is_used(write: Write) -> None:
    assert load({}, NOTHING, write('[log]\nlevel = "debug"', mode=0o644)).log.level == "debug"


def test_a_fifo_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    text = refusal({}, NOTHING, f"{tmp_path}/fifo")
    assert text == f"{tmp_path}/fifo: not a regular file; a configuration must be one"


def test_a_directory_is_refused(tmp_path: Path) -> None:
    assert refusal({}, NOTHING, str(tmp_path)) == f"--config: cannot read {tmp_path}: Is a directory"


def test_a_huge_file_is_refused(write: Write) -> None:
    assert "more than 1048576 bytes" in refusal({}, NOTHING, write("#" * (1024 * 1024 + 1)))


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[log]\nlevel = debug", "line 2, column 9: Invalid value; texts need quotes"),
        ("[listen]\nsocket_mode = 0600", "line 2, column 16: Expected newline or end of document after a statement"),
        ("[log]\n[log]\n", "line 2, column 5: Cannot declare ('log',) twice"),
        ("\n[log", "line 2, the last: Expected ']' at the end of a table declaration"),
        (b"# \n\xff", "line 2: not UTF-8"),
        ("a = " + "9" * 5000, "Exceeds the limit"),
        ("a = " + "[" * 5000, "maximum recursion depth exceeded"),
        ("[limit]", "limit: no such section; did you mean limits?"),
        ("[xyz]", "xyz: no such section; there are listen, http, limits, history, data, memory, slowlog, log"),
        ('socket = "/a"', "socket: options stand in a section; write it under [listen]"),
        ("limits = 3", "limits: expected a table, got int; write [limits]"),
        ("[limits]\nmax_conections = 1", "limits.max_conections: no such option; did you mean max_connections?"),
        ("[log]\nxyz = 1", "log.xyz: no such option; there are level, to"),
        ('[limits]\nmax_connections = "x"', "limits.max_connections: expected int, got str; allowed: 1 to 1000000"),
        ("[limits]\nmax_connections = true", "limits.max_connections: expected int, got bool; allowed: 1 to 1000000"),
        ("[limits]\nmax_connections = 1.5", "limits.max_connections: expected int, got float; allowed: 1 to 1000000"),
        ("[limits.max_connections]", "limits.max_connections: expected int, got table; allowed: 1 to 1000000"),
        ("[listen]\nsocket_mode = 600", "listen.socket_mode: expected str, got int; allowed: four octal digits in"),
        ('[listen]\nsocket_mode = "600"', "listen.socket_mode: '600' is not four octal digits; allowed: four octal"),
        ('[listen]\nsocket_mode = "0800"', "listen.socket_mode: '0800' is not four octal digits"),
        ('[listen]\nsocket_mode = "1777"', "listen.socket_mode: '1777' is more than 0777"),
        ('[listen]\ntcp = "127.0.0.1:1"', "listen.tcp: expected list of str, got str; allowed: HOST:PORT; without"),
        ("[listen]\ntcp = [1]", "listen.tcp: expected list of str, got list of int; allowed: HOST:PORT; without"),
        ('[listen]\ntcp = ["127.0.0.1"]', "listen.tcp: not HOST:PORT: '127.0.0.1'; allowed: HOST:PORT; without"),
        ('[listen]\ntcp = ["127.0.0.1:1"]', "listen.tcp: TCP needs listen.token_file, a file with the token that"),
        ('[listen]\nsocket = "tcp://h:1"', "listen.socket: tcp://h:1 is an address for clients; kv serve needs a path"),
        ('[listen]\nsocket = "~/kvd.sock"', "listen.socket: '~/kvd.sock': ~ is not expanded, write the whole path"),
        ('[listen]\nsocket = "a\\u0000"', "listen.socket: control characters in 'a\\x00'; allowed: a path"),
        (f'[listen]\nsocket = "/{"a" * 107}"', "listen.socket: the path has 108 bytes, and a socket's may have 107"),
        ('[log]\nlevel = "warn"', "log.level: 'warn' is none of them; did you mean warning?; allowed: debug, info, w"),
        ('[log]\nto = "sterr"', "log.to: 'sterr' is none of them; did you mean stderr?; allowed: auto, stderr, sysl"),
        (
            "[limits]\nmax_value_bytes = 9000\nmax_frame_bytes = 8999",
            "limits.max_value_bytes: limits.max_value_bytes (9000) may not be more than limits.max_frame_bytes (8999)",
        ),
        (
            "[limits]\nmax_reply_bytes = 8388607",
            "limits.max_reply_bytes: limits.max_value_bytes (8388608) may not be more than limits.max_reply_bytes (8",
        ),
        ("[prefix]", "prefix: write [[prefix]], in two brackets, once for each"),
        ("[[prefix]]\nmax_keys = 3", "[[prefix]] 1: table missing required field prefix"),
        (
            '[[prefix]]\nprefix = "a"\n[[prefix]]\nprefix = "b"\nhistory = 3',
            "[[prefix]] 2: history: no such option; did you mean history_ms?",
        ),
        ('[[prefix]]\nprefix = "a"\nhistory_ms = "1s"', "[[prefix]] 1: history_ms: expected int, got str"),
        ('[[prefix]]\nprefix = "a"\nsync = 1', "[[prefix]] 1: sync: expected bool, got int"),
        ('[[access]]\neveryone = true\nrights = "read"', "[[access]] 1: rights: expected list, got str"),
        ('[[access]]\nuid = "x"\nrights = []', "[[access]] 1: uid: expected int, got str"),
        (
            '[[prefix]]\nprefix = "a"\nhistory_ms = -1',
            "[[prefix]] 1: history_ms: -1 is out of bounds; allowed: 0 to 3153600000000",
        ),
        (
            '[[prefix]]\nprefix = "a"\n[[prefix]]\nprefix = "a"',
            "[[prefix]] 2: there is one for 'a' already",
        ),
        (
            '[[prefix]]\nprefix = "a"\nttl_ms = 2\nmax_ttl_ms = 1',
            "[[prefix]] 1: ttl_ms (2) may not be more than max_ttl_ms (1)",
        ),
    ],
)
def test_an_error_in_the_file_names_its_place_and_what_is_allowed(text: str | bytes, words: str, write: Write) -> None:
    file = write(text)
    assert refusal({}, NOTHING, file).startswith(f"{file}: {words}")


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        ({"KVD_LOGLEVEL": "info"}, "KVD_LOGLEVEL: no such variable; did you mean KVD_LOG_LEVEL?"),
        ({"KVD_TIMEOT": "1"}, "KVD_TIMEOT: no such variable; did you mean KVD_TIMEOUT?"),
        ({"KVD_ZZZZZZZZZ": "1"}, "KVD_ZZZZZZZZZ: no such variable; unset it"),
        ({"KVD_LIMITS_MAX_CONNECTIONS": "1e3"}, "KVD_LIMITS_MAX_CONNECTIONS: expected int, got '1e3'; allowed: 1 to"),
        ({"KVD_LIMITS_MAX_CONNECTIONS": "0"}, "KVD_LIMITS_MAX_CONNECTIONS: 0 is too small; allowed: 1 to 1000000"),
        ({"KVD_LOG_LEVEL": "loud"}, "KVD_LOG_LEVEL: 'loud' is none of them; allowed: debug, info, warning, error"),
        ({"KVD_SOCKET": "tcp://h:1"}, "KVD_SOCKET: tcp://h:1 is an address for clients; kv serve needs a path here"),
        ({"KVD_TCP": "127.0.0.1:1"}, "KVD_TCP: TCP needs listen.token_file"),
        ({"KVD_LIMITS_MAX_FRAME_BYTES": "4096"}, "KVD_LIMITS_MAX_FRAME_BYTES: limits.max_value_bytes (8388608) may "),
    ],
)
def test_an_error_in_the_environment_names_the_variable(environ: dict[str, str], text: str, empty: str) -> None:
    assert refusal({}, environ, empty).startswith(text)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"listen.socket_mode": "abc"}, "--socket-mode: 'abc' is not four octal digits; allowed: four octal digits"),
        (
            {"listen.tcp": ["0.0.0.0:1"], "listen.token_file": "/t"},
            "--tcp: '0.0.0.0:1': beyond loopback only with TLS: set listen.tls_certificate",
        ),
        ({"listen.tcp": ["127.0.0.1:1"]}, "--tcp: TCP needs listen.token_file"),
        ({"log.level": "loud"}, "--log-level: 'loud' is none of them; allowed: debug, info, warning, error"),
        (
            {"log.to": "here.log"},
            "--log-to: 'here.log' is none of them; allowed: auto, stderr, syslog, or the absolute",
        ),
        ({"log.lvel": "info"}, "log.lvel: no such option; did you mean log.level?"),
    ],
)
def test_an_error_in_a_flag_names_the_flag(flags: dict[str, object], text: str, empty: str) -> None:
    assert refusal(flags, NOTHING, empty).startswith(text)


def test_a_flag_overrides_a_kvd_socket_that_is_meant_for_clients(empty: str) -> None:
    assert load({"listen.socket": "/a"}, {"KVD_SOCKET": "tcp://h:1"}, empty).listen.socket == "/a"


# ---------------------------------------------------------------------- options that belong together


@pytest.mark.parametrize(
    ("small", "big"),
    [
        ("max_key_bytes", "max_frame_bytes"),
        ("max_value_bytes", "max_frame_bytes"),
        ("max_value_bytes", "max_reply_bytes"),
    ],
)
def test_every_value_that_can_be_set_can_be_sent(small: str, big: str, write: Write) -> None:
    def limits(value: int, most: int) -> str:
        others = "".join(f"{name} = 4096\n" for name in ("max_key_bytes", "max_value_bytes") if name != small)
        return write(f"[limits]\n{others}{small} = {value}\n{big} = {most}\n")

    for value in (4999, 5000):
        assert get(load({}, NOTHING, limits(value, 5000)), f"limits.{small}") == value
    assert f"limits.{small} (5001) may not be more than limits.{big} (5000)" in refusal({}, NOTHING, limits(5001, 5000))


# ---------------------------------------------------------------------- paths


def test_paths_in_a_file_start_at_the_files_directory(write: Write, tmp_path: Path) -> None:
    listen = load({}, NOTHING, write('[listen]\nsocket = "a/b"\ntoken_file = "../token"')).listen
    assert (listen.socket, listen.token_file) == (f"{tmp_path}/a/b", f"{tmp_path.parent}/token")


def test_paths_of_flags_and_variables_start_at_the_current_directory(
    empty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    listen = load({"listen.socket": "a"}, {"KVD_TOKEN_FILE": "token"}, empty).listen
    assert (listen.socket, listen.token_file) == (f"{tmp_path}/a", f"{tmp_path}/token")


def test_loading_again_from_another_directory_finds_the_same_paths(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write('[log]\nlevel = "debug"')
    flags, environ = {"listen.socket": "a"}, {"KVD_TOKEN_FILE": "token", "KVD_CONFIG": "kvd.toml"}
    monkeypatch.chdir(tmp_path)
    before = load(flags, environ, None)
    monkeypatch.chdir("/")
    assert load(flags, environ, None, directory=str(tmp_path)) == before


def test_a_deleted_current_directory_matters_only_for_relative_paths(
    empty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert load({"listen.socket": "/a"}, NOTHING, empty).listen.socket == "/a"
    assert refusal({"listen.socket": "a"}, NOTHING, empty).startswith("--socket: the current directory cannot be read")


def test_a_path_that_is_not_utf_8_is_kept_unchanged(empty: str) -> None:
    path = os.fsdecode(b"/run/\xff")
    assert os.fsencode(load({}, {"KVD_SOCKET": path}, empty).listen.socket) == b"/run/\xff"


# ---------------------------------------------------------------------- the structs, and what a reload may change


def test_the_structs_are_frozen_and_refuse_unknown_fields() -> None:
    for struct in (Config, Listen, Limits, History, Log):
        with pytest.raises(msgspec.ValidationError, match="unknown field"):
            msgspec.convert({"unknown": 1}, struct)
        with pytest.raises(AttributeError, match="immutable"):
            setattr(struct(), struct.__struct_fields__[0], 1)


def test_equal_configurations_have_no_changes() -> None:
    assert changes(Config(), Config()) == ([], [])


@pytest.mark.parametrize("key", OPTIONS)
def test_limits_history_memory_slowlog_and_the_log_level_are_reloadable_the_rest_needs_a_restart(key: str) -> None:
    section, _, name = key.partition(".")
    replaced = msgspec.structs.replace(getattr(Config(), section), **{name: as_value(key, EXAMPLES[key][2])})
    reloadable, restart = changes(Config(), msgspec.structs.replace(Config(), **{section: replaced}))
    can_reload = section in ("limits", "history", "memory", "slowlog") or key == "log.level"
    lines, others = (reloadable, restart) if can_reload else (restart, reloadable)
    assert [line.partition(":")[0] for line in lines] == [key]
    assert others == []


def test_changes_show_the_old_and_the_new_value() -> None:
    new = Config(
        listen=Listen(tcp=("127.0.0.1:1", "[::1]:2"), socket_group="staff"),
        limits=Limits(max_connections=20_000),
        log=Log(level="debug", to="syslog"),
    )
    assert changes(Config(), new) == (
        ["limits.max_connections: 10240 → 20000", "log.level: info → debug"],
        ["listen.socket_group: (none) → staff", "listen.tcp: (none) → 127.0.0.1:1, [::1]:2", "log.to: auto → syslog"],
    )


def test_changes_of_prefixes_name_what_differs() -> None:
    old = Config(
        prefix=(PrefixRule(prefix="a/", max_keys=2, ttl_ms=5), PrefixRule(prefix="b/"), PrefixRule(prefix="c/"))
    )
    new = Config(
        prefix=(
            PrefixRule(prefix="d/"),
            PrefixRule(prefix="c/", sync=True),
            PrefixRule(prefix="a/", max_keys=3, ttl_ms=5),
        )
    )
    assert changes(old, new) == (
        [
            "[[prefix]] 'b/': gone",
            "[[prefix]] 'd/': new",
            "[[prefix]] 'c/': sync: (none) → true",
            "[[prefix]] 'a/': max_keys: 2 → 3",
        ],
        [],
    )


def test_changes_of_access_rules_are_counted_and_their_order_is_ignored() -> None:
    read, write = AccessRule(uid=1, rights=("read",)), AccessRule(uid=1, rights=("write",))
    assert changes(Config(access=(read,)), Config(access=(write, read))) == (
        ["[[access]]: 1 new, 0 gone, 2 in all"],
        [],
    )
    assert changes(Config(access=(read,)), Config(access=(write,))) == (["[[access]]: 1 new, 1 gone, 1 in all"], [])
    assert changes(Config(access=(read, write)), Config(access=(write, read))) == ([], [])
