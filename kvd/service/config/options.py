"""What can be configured: every option with its type, its default, its bounds and its names in each source.

``sections.py`` has the defaults, ``loader.py`` decides between the sources of a value, ``kvd.toml`` explains what each
option does.
"""

import msgspec

from kvd.protocol.limits import KIB, MIB
from kvd.protocol.messages import MAX_KEYS, MAX_REQUESTS
from kvd.service.config.checks import (
    LOG_TARGETS,
    Check,
    accept_any,
    check_choice,
    check_http_addresses,
    check_log_target,
    check_mode,
    check_path,
    check_range,
    check_socket_path,
    check_tcp_addresses,
    check_text,
)
from kvd.service.config.sections import SECTIONS

Value = int | str | tuple[str, ...]

GIB = 1024 * MIB
DAY_MS = 24 * 60 * 60 * 1000
MAX_DIGITS = 30
LOG_LEVELS = ("debug", "info", "warning", "error")
SYNCS = ("always", "interval", "never")

# Options whose flag and variable have a shorter name.
_SHORT_NAMES = {"http.listen": "http"}
_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}

# The minimum and the maximum of each number; both are allowed.
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

# What each other option allows, in words and as a check.
_TEXTS: dict[str, tuple[str, Check]] = {
    "listen.socket": ("a path; empty for the default place", check_socket_path),
    "listen.socket_mode": ('four octal digits in quotes, "0000" to "0777"', check_mode),
    "listen.socket_group": ("the name or number of a group; empty for the daemon's own", accept_any),
    "listen.tcp": ("HOST:PORT; without tls_certificate a HOST in 127.0.0.0/8, [::1] or localhost", check_tcp_addresses),
    "listen.token_file": ("a path; empty for none", check_path),
    "listen.tls_certificate": ("a path; empty for no TLS", check_path),
    "listen.tls_key": ("a path; empty if the certificate's file has it", check_path),
    "listen.tls_client_ca": ("a path; empty: clients need no certificate", check_path),
    "http.listen": ("HOST:PORT, or the path of a Unix socket, with a / in it", check_http_addresses),
    "http.open": ("true, false", accept_any),
    "http.hosts": ("names of this host, as clients write them before the port", accept_any),
    "data.dir": ("a path; empty: in memory only", check_path),
    "data.sync": (", ".join(SYNCS), check_choice(*SYNCS)),
    "log.level": (", ".join(LOG_LEVELS), check_choice(*LOG_LEVELS)),
    "log.to": (", ".join(LOG_TARGETS) + ", or the absolute path of a file", check_log_target),
}


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """One option: ``key`` is ``section.name``; ``check`` raises ValueError for a value of the right type."""

    key: str
    default: Value
    allowed: str
    check: Check

    @property
    def environment(self) -> str:
        """The option's environment variable. The section's name is a part of it, except for [listen]."""
        return "KVD_" + self._short_name().upper()

    @property
    def flag(self) -> str:
        """The option's name on the command line, whether ``kv serve`` has such a flag or not."""
        return "--" + self._short_name().replace("_", "-")

    def _short_name(self) -> str:
        return _SHORT_NAMES.get(self.key, self.key.removeprefix("listen.").replace(".", "_"))

    def validate(self, raw: object) -> Value:
        """Return the value for ``raw``, which stands in a file. Raises ValueError: what is wrong, what is allowed."""
        try:
            value = _typed(raw, type(self.default))
            self.check(value)
        except ValueError as error:
            raise ValueError(f"{error}; allowed: {self.allowed}") from None
        return value

    def parse(self, text: str) -> Value:
        """Return the value for the text of a flag or a variable; commas separate a list. Raises ValueError."""
        if isinstance(self.default, tuple):
            return self.validate([item.strip() for item in text.split(",") if item.strip()])
        if isinstance(self.default, bool):
            return self.validate(_BOOLEANS.get(text.strip().lower(), text))
        if isinstance(self.default, int):
            if not _is_integer(text.strip()):
                raise ValueError(f"expected int, got {text!r}; allowed: {self.allowed}")
            return self.validate(int(text))
        return self.validate(text)


def _is_integer(text: str) -> bool:
    """Return whether ``text`` is a decimal number that is short enough to be converted quickly."""
    digits = text[1:] if text.startswith(("+", "-")) else text
    return digits.isascii() and digits.isdigit() and len(digits) <= MAX_DIGITS


def _typed(raw: object, kind: type[Value]) -> Value:
    """Return ``raw`` if it is of the type ``kind``, a list as a tuple. Raises ValueError."""
    value = tuple(raw) if isinstance(raw, list) else raw
    texts = value if isinstance(value, tuple) else (value,) if isinstance(value, str) else ()
    # Not isinstance, because a bool is an int.
    if type(value) is not kind or not all(type(text) is str for text in texts):
        expected = "list of str" if kind is tuple else kind.__name__
        raise ValueError(f"expected {expected}, got {_type_name(value)}")
    assert isinstance(value, int | str | tuple)  # follows from the check above, which mypy does not understand
    for text in texts:
        check_text(text)
    return value


def _type_name(value: object) -> str:
    if isinstance(value, tuple):
        return "list of " + " and ".join(sorted({_type_name(item) for item in value}))
    return "table" if isinstance(value, dict) else type(value).__name__


def _option(key: str, default: Value) -> Option:
    if key in BOUNDS:
        minimum, maximum = BOUNDS[key]
        allowed = f"{minimum} to {maximum}"
        return Option(key=key, default=default, allowed=allowed, check=check_range(minimum, maximum))
    allowed, check = _TEXTS[key]
    return Option(key=key, default=default, allowed=allowed, check=check)


OPTIONS: dict[str, Option] = {
    f"{section}.{field.name}": _option(f"{section}.{field.name}", field.default)
    for section, struct in SECTIONS.items()
    for field in msgspec.structs.fields(struct)
}
