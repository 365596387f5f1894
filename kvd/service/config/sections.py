"""The configuration of one daemon as a value: a struct for each section of the file, with each option's default.

The bounds and the names of the options stand in ``options.py``; ``kvd.toml`` explains what each option does.
"""

import msgspec

from kvd.protocol.limits import MIB, Limits
from kvd.requests.access import AccessRule
from kvd.store.prefixes import PrefixRule


class Listen(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where to accept connections. ``load()`` makes the paths absolute and fills in the default socket."""

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
    """The optional HTTP listener. ``load()`` makes the paths absolute."""

    listen: tuple[str, ...] = ()
    open: bool = False
    hosts: tuple[str, ...] = ()
    max_json_bytes: int = MIB


class History(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How much history stays readable; the limit that is reached first counts."""

    max_age_ms: int = 600_000
    max_bytes: int = 64 * MIB
    max_versions: int = 1_000_000


class Data(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where commits are stored, and how durably. ``load()`` makes the path absolute."""

    dir: str = ""
    sync: str = "always"
    interval_ms: int = 1_000
    segment_bytes: int = 64 * MIB
    checkpoint_bytes: int = 64 * MIB


class Memory(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How much the daemon may hold in memory. 0 means half of what the machine allows for bytes, no limit for keys."""

    max_bytes: int = 0
    max_keys: int = 0


class SlowLog(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which frames ``kv slowlog`` shows."""

    threshold_us: int = 10_000
    max_entries: int = 128


class Log(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the daemon logs, and where."""

    level: str = "info"
    to: str = "auto"


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The configuration of one daemon, a field for each section of the file.

    The rules and limits are the structs of the layers that apply them: the configuration knows those layers, and no
    layer knows the configuration.
    """

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
# Sections that may stand in the file several times, each [[like this]]. They hold rules, not options.
TABLES = ("prefix", "access")
RELOADABLE_SECTIONS = ("limits", "history", "memory", "slowlog")
RELOADABLE_KEYS = ("log.level",)
