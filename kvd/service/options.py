"""What can be configured: every option with its type, its default and what it may be.

Where the values come from, and which source goes before which, is the question of ``config.py``; what they are good for
is told in ``kvd.toml``.
"""

import difflib
import ipaddress
import os
import re
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from kvd.protocol.address import MAX_UNIX_PATH_BYTES, parse_host_port
from kvd.protocol.limits import KIB, MIB, Limits
from kvd.protocol.messages import MAX_KEYS, MAX_REQUESTS
from kvd.requests.access import AccessRule
from kvd.store.prefixes import PrefixRule
from kvd.telemetry.slow_log import DEFAULT_ENTRIES, DEFAULT_THRESHOLD_US

Value = int | str | tuple[str, ...]

GIB = 1024 * MIB
DAY_MS = 24 * 60 * 60 * 1000
LOG_LEVELS = ("debug", "info", "warning", "error")
SYNCS = ("always", "interval", "never")
LOG_TARGETS = ("auto", "stderr", "syslog")


class Listen(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where to accept connections. ``config.load()`` makes both paths absolute and fills in the default socket."""

    socket: str = ""
    socket_mode: str = "0600"
    socket_group: str = ""
    tcp: tuple[str, ...] = ()
    token_file: str = ""
    busy_poll_us: int = 0
    tls_certificate: str = ""
    tls_key: str = ""
    tls_client_ca: str = ""


class Http(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The optional HTTP listener. ``config.load()`` makes paths absolute."""

    listen: tuple[str, ...] = ()
    open: bool = False
    hosts: tuple[str, ...] = ()
    max_json_bytes: int = MIB


class History(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How much of the past stays readable: whichever limit is reached first."""

    max_age_ms: int = 600_000
    max_bytes: int = 64 * MIB
    max_versions: int = 1_000_000


class Data(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where commits are kept, and how safely. ``config.load()`` makes the path absolute."""

    dir: str = ""
    sync: str = "always"
    interval_ms: int = 1_000
    segment_bytes: int = 64 * MIB
    checkpoint_bytes: int = 64 * MIB


class Memory(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How much may be in memory."""

    max_bytes: int = 0
    max_keys: int = 0


class SlowLog(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which frames ``kv slowlog`` shows."""

    threshold_us: int = DEFAULT_THRESHOLD_US
    max_entries: int = DEFAULT_ENTRIES


class Log(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is written to the logging, and where that goes."""

    level: str = "info"
    to: str = "auto"


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The configuration of one daemon, a field for each section of the file."""

    listen: Listen = msgspec.field(default_factory=Listen)
    http: Http = msgspec.field(default_factory=Http)
    limits: Limits = msgspec.field(default_factory=Limits)
    history: History = msgspec.field(default_factory=History)
    data: Data = msgspec.field(default_factory=Data)
    memory: Memory = msgspec.field(default_factory=Memory)
    prefix: tuple[PrefixRule, ...] = ()
    access: tuple[AccessRule, ...] = ()
    slowlog: SlowLog = msgspec.field(default_factory=SlowLog)
    log: Log = msgspec.field(default_factory=Log)


SECTIONS: dict[str, type[msgspec.Struct]] = {
    "listen": Listen,
    "http": Http,
    "limits": Limits,
    "history": History,
    "data": Data,
    "memory": Memory,
    "slowlog": SlowLog,
    "log": Log,
}
# Those that may come several times, each [[like this]]: they are no options with a value each.
TABLES = ("prefix", "access")
RELOADABLE_SECTIONS = ("limits", "history", "memory", "slowlog")
RELOADABLE_KEYS = ("log.level",)

# Options whose flag and variable are named otherwise.
_SHORT_NAMES = {"http.listen": "http"}
_TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}

# Least and most, both allowed.
BOUNDS: dict[str, tuple[int, int]] = {
    "listen.busy_poll_us": (0, 100_000),
    "http.max_json_bytes": (1_024, 256 * MIB),
    "limits.max_connections": (1, 1_000_000),
    "limits.max_connections_per_uid": (1, 1_000_000),
    "limits.max_frame_bytes": (4 * KIB, 256 * MIB),
    "limits.max_reply_bytes": (4 * KIB, GIB),
    "limits.max_key_bytes": (1, 64 * KIB),
    "limits.max_value_bytes": (1, 256 * MIB),
    "limits.max_requests_per_frame": (1, MAX_REQUESTS),
    "limits.max_keys_per_request": (1, MAX_KEYS),
    "limits.max_snapshots_per_connection": (0, 1_000_000),
    "limits.snapshot_idle_timeout_ms": (10, DAY_MS),
    "limits.max_ephemeral_keys_per_connection": (0, 1_000_000),
    "limits.max_watches_per_uid": (0, 1_000_000),
    "limits.max_remembered_writes": (0, 10_000_000),
    "limits.frame_timeout_ms": (10, 3_600_000),
    "limits.hello_timeout_ms": (10, 600_000),
    "limits.stalled_peer_timeout_ms": (10, 3_600_000),
    "limits.tcp_idle_timeout_ms": (10, DAY_MS),
    "limits.drain_timeout_ms": (0, 600_000),
    "memory.max_bytes": (0, 1024 * GIB),
    "memory.max_keys": (0, 1_000_000_000),
    "slowlog.threshold_us": (0, 3_600_000_000),
    "slowlog.max_entries": (0, 100_000),
    "data.interval_ms": (1, 3_600_000),
    "data.segment_bytes": (64 * KIB, GIB),
    "data.checkpoint_bytes": (64 * KIB, 1024 * GIB),
    "history.max_age_ms": (0, 365 * DAY_MS),
    "history.max_bytes": (0, 1024 * GIB),
    "history.max_versions": (0, 1_000_000_000),
}


# Of the numbers in a [[prefix]]: least and most.
PREFIX_OPTIONS = tuple(field.name for field in msgspec.structs.fields(PrefixRule))
PREFIX_BOUNDS: dict[str, tuple[int, int]] = {
    "max_bytes": (0, 1024 * GIB),
    "max_keys": (0, 1_000_000_000),
    "ttl_ms": (0, 100 * 365 * DAY_MS),
    "max_ttl_ms": (0, 100 * 365 * DAY_MS),
    "history_ms": (0, 100 * 365 * DAY_MS),
}


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """One option: ``key`` is ``section.name``; ``check`` raises ValueError for a value of the right type."""

    key: str
    default: Value
    allowed: str
    check: Callable[[Any], None]

    @property
    def environment(self) -> str:
        """The option's environment variable; those of [listen] go without the section's name."""
        return "KVD_" + self._short_name().upper()

    @property
    def flag(self) -> str:
        """The option's name on the command line, whether ``kv serve`` has it or not."""
        return "--" + self._short_name().replace("_", "-")

    def _short_name(self) -> str:
        return _SHORT_NAMES.get(self.key, self.key.removeprefix("listen.").replace(".", "_"))

    def value(self, given: object) -> Value:
        """The value to use for what a file holds. Raises ValueError: what is wrong, and what is allowed."""
        try:
            value = _typed(given, type(self.default))
            self.check(value)
        except ValueError as error:
            raise ValueError(f"{error}; allowed: {self.allowed}") from None
        return value

    def value_of_text(self, text: str) -> Value:
        """The value to use for a flag's or a variable's text; commas separate a list. Raises ValueError."""
        if isinstance(self.default, tuple):
            return self.value([item.strip() for item in text.split(",") if item.strip()])
        if isinstance(self.default, bool):
            return self.value(_TRUTHS.get(text.strip().lower(), text))
        if isinstance(self.default, int):
            if not re.fullmatch(r"[+-]?[0-9]{1,30}", text.strip()):
                raise ValueError(f"expected int, got {text!r}; allowed: {self.allowed}")
            return self.value(int(text))
        return self.value(text)


def _typed(given: object, kind: type[Value]) -> Value:
    """``given`` if it is of the type ``kind``, a list as a tuple. Raises ValueError."""
    value = tuple(given) if isinstance(given, list) else given
    texts = value if isinstance(value, tuple) else (value,) if isinstance(value, str) else ()
    # Not isinstance: a bool would pass for an int.
    if type(value) is not kind or not all(type(text) is str for text in texts):
        expected = "list of str" if kind is tuple else kind.__name__
        raise ValueError(f"expected {expected}, got {_type_name(value)}")
    assert isinstance(value, int | str | tuple)  # the check above holds it; mypy does not follow type()
    for text in texts:
        if any(ord(character) < 0x20 or ord(character) == 0x7F for character in text):
            raise ValueError(f"control characters in {text!r}")
    return value


def _type_name(value: object) -> str:
    if isinstance(value, tuple):
        return "list of " + " and ".join(sorted({_type_name(item) for item in value}))
    return "table" if isinstance(value, dict) else type(value).__name__


# ---------------------------------------------------------------------- checks of one value; each raises ValueError


def _check_bounds(least: int, most: int) -> Callable[[int], None]:
    def check(value: int) -> None:
        if not least <= value <= most:
            raise ValueError(f"{value} is too {'small' if value < least else 'big'}")

    return check


def _check_choice(*choices: str) -> Callable[[str], None]:
    def check(value: str) -> None:
        if value not in choices:
            raise ValueError(f"{value!r} is none of them{suggestion(value, choices)}")

    return check


def _check_socket(path: str) -> None:
    if path.startswith("tcp://"):
        raise ValueError(f"{path} is an address for clients; kv serve needs a path here, and --tcp HOST:PORT for TCP")
    _check_path(path)
    if len(os.fsencode(path)) > MAX_UNIX_PATH_BYTES:
        raise ValueError(f"the path has {len(os.fsencode(path))} bytes, and a socket's may have {MAX_UNIX_PATH_BYTES}")


def _check_path(path: str) -> None:
    if path.startswith("~"):
        raise ValueError(f"{path!r}: ~ is not expanded, write the whole path")


def _check_mode(mode: str) -> None:
    if not re.fullmatch("[0-7]{4}", mode):
        raise ValueError(f"{mode!r} is not four octal digits")
    if int(mode, 8) > 0o777:
        raise ValueError(f"{mode!r} is more than 0777")


def _check_tcp(addresses: tuple[str, ...]) -> None:
    for address in addresses:
        parse_host_port(address)


def _check_http(addresses: tuple[str, ...]) -> None:
    for address in addresses:
        if is_path(address):
            _check_socket(address)
        else:
            parse_host_port(address)


def is_path(address: str) -> bool:
    """Whether this is a Unix socket's path, and not HOST:PORT."""
    return "/" in address


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    # Not is_loopback of both families: from Python 3.13 on it holds of ::ffff:127.0.0.1 too.
    return address.is_loopback if address.version == 4 else address == ipaddress.IPv6Address("::1")


def _check_log_target(target: str) -> None:
    if target not in LOG_TARGETS and not target.startswith("/"):
        raise ValueError(f"{target!r} is none of them{suggestion(target, LOG_TARGETS)}")


def _check_nothing(_: object) -> None:
    return


# ---------------------------------------------------------------------- all options

_TEXTS: dict[str, tuple[str, Callable[[Any], None]]] = {
    "listen.socket": ("a path; empty for the default place", _check_socket),
    "listen.socket_mode": ('four octal digits in quotes, "0000" to "0777"', _check_mode),
    "listen.socket_group": ("the name or number of a group; empty for the daemon's own", _check_nothing),
    "listen.tcp": ("HOST:PORT; without tls_certificate a HOST in 127.0.0.0/8, [::1] or localhost", _check_tcp),
    "listen.token_file": ("a path; empty for none", _check_path),
    "listen.tls_certificate": ("a path; empty for no TLS", _check_path),
    "listen.tls_key": ("a path; empty if the certificate's file has it", _check_path),
    "listen.tls_client_ca": ("a path; empty: clients need no certificate", _check_path),
    "http.listen": ("HOST:PORT, or the path of a Unix socket, with a / in it", _check_http),
    "http.open": ("true, false", _check_nothing),
    "http.hosts": ("names of this host, as clients write them before the port", _check_nothing),
    "data.dir": ("a path; empty: in memory only", _check_path),
    "data.sync": (", ".join(SYNCS), _check_choice(*SYNCS)),
    "log.level": (", ".join(LOG_LEVELS), _check_choice(*LOG_LEVELS)),
    "log.to": (", ".join(LOG_TARGETS) + ", or the absolute path of a file", _check_log_target),
}


def _option(key: str, default: Value) -> Option:
    if key in BOUNDS:
        least, most = BOUNDS[key]
        return Option(key=key, default=default, allowed=f"{least} to {most}", check=_check_bounds(least, most))
    allowed, check = _TEXTS[key]
    return Option(key=key, default=default, allowed=allowed, check=check)


OPTIONS: dict[str, Option] = {
    option.key: option
    for section, struct in SECTIONS.items()
    for field in msgspec.structs.fields(struct)
    for option in [_option(f"{section}.{field.name}", field.default)]
}


def in_words(error: msgspec.ValidationError) -> str:
    """What msgspec finds wrong with a table, as our own checks would say it: ``max_keys: expected int, got str``."""
    text, _, path = str(error).partition(" - at `$")
    for theirs, ours in ((" | null", ""), ("array", "list"), ("object", "table"), ("Object", "table"), ("`", "")):
        text = text.replace(theirs, ours)
    where = path.strip(".`")
    return (f"{where}: " if where else "") + text[:1].lower() + text[1:]


def suggestion(name: str, names: Iterable[str]) -> str:
    """``; did you mean …?`` to put behind an error, if one of ``names`` is near; else nothing."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {near[0]}?" if near else ""
