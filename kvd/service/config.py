"""Which configuration a daemon gets: every source read, checked and merged.

        flag  >  KVD_* variable  >  configuration file  >  default

One file is read: --config, else KVD_CONFIG, else the first that exists of the standard places. Every error names the
place of the mistake, so that the person can mend it there, and what is allowed. What the options are: ``options.py``.
"""

import os
import stat
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from kvd.protocol.address import default_socket, parse_host_port
from kvd.requests.access import AccessRule
from kvd.service.access_rules import access_rule
from kvd.service.options import (
    OPTIONS,
    PREFIX_BOUNDS,
    PREFIX_OPTIONS,
    SECTIONS,
    TABLES,
    Config,
    History,
    Http,
    Listen,
    Log,
    Memory,
    Option,
    Value,
    in_words,
    is_loopback,
    is_path,
    suggestion,
)
from kvd.store.prefixes import PrefixRule

__all__ = ["Config", "ConfigError", "History", "Http", "Listen", "Log", "Memory", "load", "standard_places"]

SYSTEM_FILE = "/etc/kvd/kvd.toml"
MAX_FILE_BYTES = 1024 * 1024
# Variables that kv reads elsewhere; no options of the daemon, no mistakes either.
OTHER_VARIABLES = ("KVD_CONFIG", "KVD_DEBUG", "KVD_TIMEOUT", "KVD_CA_FILE", "KVD_CERTIFICATE_FILE", "KVD_KEY_FILE")
# An option that may not be more than another: what could be set could not be sent.
_NOT_MORE_THAN = (
    ("limits.max_key_bytes", "limits.max_frame_bytes"),
    ("limits.max_value_bytes", "limits.max_frame_bytes"),
    ("limits.max_value_bytes", "limits.max_reply_bytes"),
)


class ConfigError(Exception):
    """The configuration cannot be used; the text says where the mistake is and what is allowed there."""


class _Setting(msgspec.Struct, frozen=True):
    """One option as one source gives it. ``directory`` is the one that a relative path starts from."""

    value: Value
    origin: str
    directory: str


_Settings = dict[str, _Setting]


def load(
    flags: Mapping[str, object],
    environ: Mapping[str, str],
    config_file: str | None,
    *,
    directory: str = "",
) -> Config:
    """The configuration from all sources, its paths absolute. Raises ConfigError.

    ``flags`` are keyed by option (``listen.socket``), their values text, a list of texts, or None for a flag not given.
    Relative paths start from ``directory`` (empty: the current one), those in a file from the file's directory. Whoever
    loads again after a change of directory must pass the first one.
    """
    file = _find_file(environ, config_file, directory)
    settings = _from_file(file)
    given = {key: value for key, value in flags.items() if value is not None}
    settings |= _from_environment(environ, given, directory)
    settings |= _from_flags(given, directory)
    _check_together(settings)
    sections: dict[str, dict[str, Value]] = {section: {} for section in SECTIONS}
    for key, setting in settings.items():
        section, _, name = key.partition(".")
        sections[section][name] = setting.value
    config = msgspec.convert(sections, Config)
    config = msgspec.structs.replace(config, prefix=_prefix_rules(file), access=_access_rules(file))
    data = config.data
    if data.dir:
        setting = settings["data.dir"]
        data = msgspec.structs.replace(data, dir=_absolute(data.dir, setting.directory, setting.origin))
    listen, http = _with_absolute_paths(config.listen, settings), _with_absolute_http(config.http, settings)
    return msgspec.structs.replace(config, listen=listen, http=http, data=data)


# ---------------------------------------------------------------------- flags and environment


def _from_flags(flags: Mapping[str, object], directory: str) -> _Settings:
    settings = {}
    for key, given in flags.items():
        if key not in OPTIONS:
            raise ConfigError(f"{key}: no such option{suggestion(key, OPTIONS)}")
        option = OPTIONS[key]
        settings[key] = _setting(option, given, option.flag, directory)
    return settings


def _from_environment(environ: Mapping[str, str], flags: Mapping[str, object], directory: str) -> _Settings:
    """What the variables say of options that no flag decides; an empty variable says nothing."""
    options = {option.environment: option for option in OPTIONS.values()}
    settings = {}
    for name, text in environ.items():
        if not name.startswith("KVD_") or name in OTHER_VARIABLES:
            continue
        if name not in options:
            near = suggestion(name, [*options, *OTHER_VARIABLES])
            raise ConfigError(f"{name}: no such variable{near or '; unset it'}")
        option = options[name]
        # A flag also takes the place of a KVD_SOCKET that is a client's tcp://….
        if text and option.key not in flags:
            settings[option.key] = _setting(option, text, name, directory)
    return settings


def _setting(option: Option, given: object, origin: str, directory: str) -> _Setting:
    try:
        value = option.value_of_text(given) if isinstance(given, str) else option.value(given)
    except ValueError as error:
        raise ConfigError(f"{origin}: {error}") from None
    return _Setting(value, origin, directory)


# ---------------------------------------------------------------------- the file


def standard_places(environ: Mapping[str, str], uid: int) -> list[str]:
    """Where a configuration file is looked for that nobody named, in order."""
    if uid == 0:
        return [SYSTEM_FILE]
    home = environ.get("HOME") or os.path.expanduser("~")
    base = environ.get("XDG_CONFIG_HOME", "")
    # The XDG base directory specification: a relative path is to be ignored.
    base = base if os.path.isabs(base) else os.path.join(home, ".config")
    return [os.path.join(base, "kvd/kvd.toml"), SYSTEM_FILE]


def _find_file(environ: Mapping[str, str], config_file: str | None, directory: str) -> tuple[str, str] | None:
    """The file's path, and its text; None if nobody named one and there is none in the standard places."""
    for origin, named in (("--config", config_file), ("KVD_CONFIG", environ.get("KVD_CONFIG"))):
        if named:
            path = _absolute(named, directory, origin)
            try:
                return path, _read(path)
            except OSError as error:
                raise ConfigError(f"{origin}: cannot read {path}: {error.strerror}") from None
    for path in standard_places(environ, os.getuid()):
        try:
            return path, _read(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            # Never the defaults in silence: somebody meant this file to hold.
            raise ConfigError(f"cannot read {path}: {error.strerror}; --config FILE names another") from None
    return None


def _open_at_once(path: str, flags: int) -> int:
    # A FIFO must be refused, not waited for.
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def _read(path: str) -> str:
    """The text of a configuration file that only its owner can have written. Raises ConfigError and OSError."""
    with open(path, "rb", opener=_open_at_once) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"{path}: not a regular file; a configuration has to be one")
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            mode = stat.S_IMODE(found.st_mode)
            raise ConfigError(f"{path}: others than its owner can write it (mode {mode:04o}); run: chmod go-w {path}")
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: more than {MAX_FILE_BYTES} bytes; this is no configuration")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}: line {line}: not UTF-8") from None


def _from_file(found: tuple[str, str] | None) -> _Settings:
    if found is None:
        return {}
    path, text = found
    settings: _Settings = {}
    for section, options in _parse(path, text).items():
        if section in TABLES:
            continue
        if section not in SECTIONS:
            raise ConfigError(f"{path}: {section}: {_unknown_section(section)}")
        if not isinstance(options, dict):
            raise ConfigError(f"{path}: {section}: expected a table, got {type(options).__name__}; write [{section}]")
        names = [key.partition(".")[2] for key in OPTIONS if key.startswith(section + ".")]
        for name, given in options.items():
            key = f"{section}.{name}"
            if name not in names:
                raise ConfigError(f"{path}: {key}: no such option{suggestion(name, names) or _all(names)}")
            settings[key] = _from_toml(OPTIONS[key], given, path)
    return settings


def _tables(found: tuple[str, str] | None, name: str) -> list[tuple[str, object]]:
    """The file's [[name]] tables, each with its place in words. Raises ConfigError."""
    if found is None:
        return []
    path, text = found
    tables = _parse(path, text).get(name, [])
    if not isinstance(tables, list):
        raise ConfigError(f"{path}: {name}: write [[{name}]], in two brackets, once for each")
    return [(f"{path}: [[{name}]] {number}", table) for number, table in enumerate(tables, 1)]


def _prefix_rules(found: tuple[str, str] | None) -> tuple[PrefixRule, ...]:
    rules: dict[str, PrefixRule] = {}
    for origin, table in _tables(found, "prefix"):
        rule = _prefix_rule(origin, table)
        if rule.prefix in rules:
            raise ConfigError(f"{origin}: there is one for {rule.prefix!r} already")
        rules[rule.prefix] = rule
    return tuple(rules.values())


def _access_rules(found: tuple[str, str] | None) -> tuple[AccessRule, ...]:
    rules = []
    for origin, table in _tables(found, "access"):
        try:
            rules.append(access_rule(table))
        except ValueError as error:
            raise ConfigError(f"{origin}: {error}") from None
    return tuple(rules)


def _prefix_rule(origin: str, table: object) -> PrefixRule:
    for name in table if isinstance(table, dict) else ():
        if name not in PREFIX_OPTIONS:
            hint = suggestion(name, PREFIX_OPTIONS) or _all(PREFIX_OPTIONS)
            raise ConfigError(f"{origin}: {name}: no such option{hint}")
    try:
        rule = msgspec.convert(table, PrefixRule)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{origin}: {in_words(error)}") from None
    for name, (least, most) in PREFIX_BOUNDS.items():
        value = getattr(rule, name)
        if not least <= value <= most:
            raise ConfigError(f"{origin}: {name}: {value} is out of bounds; allowed: {least} to {most}")
    if rule.ttl_ms > rule.max_ttl_ms > 0:
        raise ConfigError(f"{origin}: ttl_ms ({rule.ttl_ms}) may not be more than max_ttl_ms ({rule.max_ttl_ms})")
    return rule


def _from_toml(option: Option, given: object, path: str) -> _Setting:
    origin = f"{path}: {option.key}"
    try:
        return _Setting(option.value(given), origin, os.path.dirname(path))
    except ValueError as error:
        raise ConfigError(f"{origin}: {error}") from None


def _parse(path: str, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        # "… (at line 3, column 7)" or "… (at end of document)": the only place where the parser tells it.
        reason, _, place = str(error).rpartition(" (at ")
        last = max(1, len(text.splitlines()))
        place = place.removesuffix(")") if place.startswith("line ") else f"line {last}, the last"
        hint = "; texts need quotes" if reason == "Invalid value" else ""
        raise ConfigError(f"{path}: {place}: {reason}{hint}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from None


def _unknown_section(name: str) -> str:
    homes = [key for key in OPTIONS if key.endswith("." + name)]
    if homes:
        return f"options stand in a section; write it under [{homes[0].partition('.')[0]}]"
    return "no such section" + (suggestion(name, SECTIONS) or _all(SECTIONS))


def _all(names: Iterable[str]) -> str:
    return f"; there are {', '.join(names)}"


# ---------------------------------------------------------------------- all sources together


def _check_together(settings: _Settings) -> None:
    """What no option can know alone. Raises ConfigError."""
    for small, big in _NOT_MORE_THAN:
        value, most = _number(settings, small), _number(settings, big)
        if value > most:
            origin = (settings.get(small) or settings[big]).origin
            raise ConfigError(f"{origin}: {small} ({value}) may not be more than {big} ({most}); change one of them")
    _check_tcp(settings)
    _check_http(settings)


def _check_http(settings: _Settings) -> None:
    """Nor does HTTP on TCP, unless it is said to be open, and then on loopback alone. Raises ConfigError."""
    given = {key: setting.value for key, setting in settings.items()}
    if not given.get("http.listen"):
        return
    http = settings["http.listen"]
    assert isinstance(http.value, tuple)
    for address in http.value:
        if is_path(address):
            continue
        on_loopback = is_loopback(parse_host_port(address)[0])
        if given.get("http.open"):
            if not on_loopback:
                raise ConfigError(f"{http.origin}: {address!r}: http.open is for loopback alone")
            continue
        if not given.get("listen.token_file") and not given.get("listen.tls_client_ca"):
            text = "HTTP on TCP needs listen.token_file, a file with the token that clients must show"
            raise ConfigError(f"{http.origin}: {text}; or, on loopback, --http-open, which lets any local user in")
        if not given.get("listen.tls_certificate") and not on_loopback:
            raise ConfigError(f"{http.origin}: {address!r}: beyond loopback only with TLS: set listen.tls_certificate")


def _with_absolute_http(http: Http, settings: _Settings) -> Http:
    if not http.listen:
        return http
    setting = settings["http.listen"]
    addresses = (_absolute(each, setting.directory, setting.origin) if is_path(each) else each for each in http.listen)
    return msgspec.structs.replace(http, listen=tuple(addresses))


def _check_tcp(settings: _Settings) -> None:
    """TCP lets nobody in whom it does not know, and shows nothing to a network. Raises ConfigError."""
    given = {key: setting.value for key, setting in settings.items()}
    certificate, client_ca = given.get("listen.tls_certificate"), given.get("listen.tls_client_ca")
    for key in ("listen.tls_key", "listen.tls_client_ca"):
        if given.get(key) and not certificate:
            raise ConfigError(f"{settings[key].origin}: {key} without listen.tls_certificate is of no use")
    if not given.get("listen.tcp"):
        return
    tcp = settings["listen.tcp"]
    if not given.get("listen.token_file") and not client_ca:
        text = "TCP needs listen.token_file, a file with the token that clients must show, or listen.tls_client_ca"
        raise ConfigError(f"{tcp.origin}: {text}")
    assert isinstance(tcp.value, tuple)
    for address in tcp.value:
        if not certificate and not is_loopback(parse_host_port(address)[0]):
            raise ConfigError(f"{tcp.origin}: {address!r}: beyond loopback only with TLS: set listen.tls_certificate")


def _number(settings: _Settings, key: str) -> int:
    value = settings[key].value if key in settings else OPTIONS[key].default
    assert isinstance(value, int)
    return value


def _with_absolute_paths(listen: Listen, settings: _Settings) -> Listen:
    paths = {} if listen.socket else {"socket": os.path.abspath(default_socket())}
    for name in ("socket", "token_file", "tls_certificate", "tls_key", "tls_client_ca"):
        if given := getattr(listen, name):
            setting = settings[f"listen.{name}"]
            paths[name] = _absolute(given, setting.directory, setting.origin)
    return msgspec.structs.replace(listen, **paths)


def _absolute(path: str, directory: str, origin: str) -> str:
    try:
        return os.path.abspath(os.path.join(directory, path))
    except OSError as error:
        raise ConfigError(f"{origin}: the current directory cannot be read ({error}); write a whole path") from None
