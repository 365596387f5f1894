"""Which configuration a daemon gets: every source read, checked and merged.

        flag  >  KVD_* variable  >  configuration file  >  default

One file is read: --config, else KVD_CONFIG, else the first that exists of the standard places. Every error says where
the mistake is, so that it can be mended there, and what is allowed.
"""

import os
from collections.abc import Mapping

import msgspec

from kvd.protocol.address import default_socket, normalize
from kvd.service.config.access_rules import access_rules
from kvd.service.config.checks import is_path
from kvd.service.config.combinations import check_combinations
from kvd.service.config.file import find_file
from kvd.service.config.options import OPTIONS
from kvd.service.config.prefix_rules import prefix_rules
from kvd.service.config.sections import Config, Data, Http, Listen
from kvd.service.config.settings import Setting, Settings, setting
from kvd.service.config.wording import suggestion
from kvd.service.errors import ConfigError

# Variables that kv reads elsewhere: neither options of the daemon nor mistakes.
OTHER_VARIABLES = ("KVD_CONFIG", "KVD_DEBUG", "KVD_TIMEOUT", "KVD_CA_FILE", "KVD_CERTIFICATE_FILE", "KVD_KEY_FILE")


class ConfigSources:
    """The sources of a daemon's configuration, as they are when the command starts.

    A reload reads the same flags, variables and paths, although the daemon runs in another directory by then.
    """

    def __init__(self, flags: Mapping[str, object], config_file: str | None) -> None:
        self._flags = flags
        self._config_file = config_file
        self._environ = dict(os.environ)
        self._directory = _working_directory()

    def read(self) -> Config:
        """Return the configuration as the sources are now. Raises ConfigError."""
        return load(self._flags, self._environ, self._config_file, directory=self._directory)


def _working_directory() -> str:
    """The directory where relative paths start; empty if it has been removed."""
    try:
        return os.getcwd()
    except OSError:
        return ""


def load(
    flags: Mapping[str, object],
    environ: Mapping[str, str],
    config_file: str | None,
    *,
    directory: str = "",
) -> Config:
    """Return the configuration from all sources, its paths absolute. Raises ConfigError.

    ``flags`` are keyed by option (``listen.socket``). Their values are a text, a list of texts, or None for an absent
    flag. Relative paths start at ``directory`` (empty: the current directory), in a file at the file's directory. To
    load again after a change of directory, pass the first one.
    """
    file = find_file(environ, config_file, directory)
    by_key = file.settings()
    present = {key: value for key, value in flags.items() if value is not None}
    by_key |= _from_environment(environ, present, directory)
    by_key |= _from_flags(present, directory)
    settings = Settings(by_key)
    check_combinations(settings)
    config = msgspec.convert(settings.sections(), Config)
    config = msgspec.structs.replace(config, prefix=prefix_rules(file), access=access_rules(file))
    return msgspec.structs.replace(
        config,
        data=_absolute_data(config.data, settings),
        listen=_absolute_listen(config.listen, settings),
        http=_absolute_http(config.http, settings),
    )


# ---------------------------------------------------------------------- flags and environment


def _from_flags(flags: Mapping[str, object], directory: str) -> dict[str, Setting]:
    settings = {}
    for key, raw in flags.items():
        if key not in OPTIONS:
            raise ConfigError(f"{key}: no such option{suggestion(key, OPTIONS)}")
        settings[key] = _setting(key, raw, OPTIONS[key].flag, directory)
    return settings


def _from_environment(environ: Mapping[str, str], flags: Mapping[str, object], directory: str) -> dict[str, Setting]:
    """The options that variables set and no flag overrides. An empty variable sets nothing. Raises ConfigError."""
    options = {option.environment: option for option in OPTIONS.values()}
    settings = {}
    for name, text in environ.items():
        if not name.startswith("KVD_") or name in OTHER_VARIABLES:
            continue
        if name not in options:
            hint = suggestion(name, [*options, *OTHER_VARIABLES])
            raise ConfigError(f"{name}: no such variable{hint or '; unset it'}")
        key = options[name].key
        # With a flag the variable is not even checked, because KVD_SOCKET may be a client's tcp://….
        if text and key not in flags:
            settings[key] = _setting(key, text, name, directory)
    return settings


def _setting(key: str, raw: object, origin: str, directory: str) -> Setting:
    option = OPTIONS[key]
    return setting(lambda: option.parse(raw) if isinstance(raw, str) else option.validate(raw), origin, directory)


# ---------------------------------------------------------------------- absolute paths


def _absolute_listen(listen: Listen, settings: Settings) -> Listen:
    paths = {} if listen.socket else {"socket": os.path.abspath(default_socket())}
    for name in ("socket", "token_file", "tls_certificate", "tls_key", "tls_client_ca"):
        if path := getattr(listen, name):
            path = normalize(path) if name == "socket" else path
            paths[name] = settings.absolute(f"listen.{name}", path)
    return msgspec.structs.replace(listen, **paths)


def _absolute_http(http: Http, settings: Settings) -> Http:
    addresses = [settings.absolute("http.listen", normalize(each)) if is_path(each) else each for each in http.listen]
    return msgspec.structs.replace(http, listen=tuple(addresses))


def _absolute_data(data: Data, settings: Settings) -> Data:
    return msgspec.structs.replace(data, dir=settings.absolute("data.dir", data.dir)) if data.dir else data
