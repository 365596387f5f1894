"""The configuration file: where it is looked for, whether it can be trusted, and what it holds."""

import codecs
import os
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from kvd.service import trusted_files
from kvd.service.config.options import OPTIONS
from kvd.service.config.sections import SECTIONS, TABLES
from kvd.service.config.settings import Setting, absolute, setting
from kvd.service.config.wording import suggestion_or_all
from kvd.service.errors import ConfigError

SYSTEM_FILE = "/etc/kvd/kvd.toml"
MAX_FILE_BYTES = 1024 * 1024


class ConfigFile(msgspec.Struct, frozen=True):
    """A configuration file: its path, and its content by section."""

    path: str
    content: dict[str, Any]

    def settings(self) -> dict[str, Setting]:
        """The options that the file sets. Raises ConfigError."""
        settings: dict[str, Setting] = {}
        for section, options in self.content.items():
            if section not in TABLES:
                settings |= self._section_settings(section, options)
        return settings

    def _section_settings(self, section: str, options: object) -> dict[str, Setting]:
        if section not in SECTIONS:
            raise ConfigError(f"{self.path}: {section}: {_unknown_section(section)}")
        if not isinstance(options, dict):
            kind = type(options).__name__
            raise ConfigError(f"{self.path}: {section}: expected a table, got {kind}; write [{section}]")
        names = SECTIONS[section].__struct_fields__
        settings = {}
        for name, raw in options.items():
            key = f"{section}.{name}"
            if name not in names:
                raise ConfigError(f"{self.path}: {key}: no such option{suggestion_or_all(name, names)}")
            settings[key] = self._setting(key, raw)
        return settings

    def _setting(self, key: str, raw: object) -> Setting:
        return setting(lambda: OPTIONS[key].validate(raw), f"{self.path}: {key}", os.path.dirname(self.path))

    def tables(self, name: str) -> Iterator[tuple[str, object]]:
        """Yield each [[name]] of the file, after its place in words. Raises ConfigError."""
        tables = self.content.get(name, [])
        if not isinstance(tables, list):
            raise ConfigError(f"{self.path}: {name}: write [[{name}]], in two brackets, once for each")
        for number, table in enumerate(tables, 1):
            yield f"{self.path}: [[{name}]] {number}", table


NO_FILE = ConfigFile("", {})


def find_file(environ: Mapping[str, str], named: str | None, directory: str) -> ConfigFile:
    """Read the file that ``--config`` (``named``) or KVD_CONFIG names, else the first standard one that exists.

    A relative path starts at ``directory``. Returns NO_FILE if no file is named and none exists. Raises ConfigError.
    """
    for origin, path in (("--config", named), ("KVD_CONFIG", environ.get("KVD_CONFIG"))):
        if path:
            return _read_named(absolute(path, directory, origin), origin)
    for path in standard_places(environ, os.getuid()):
        try:
            return _load(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            if isinstance(error, PermissionError) and path != SYSTEM_FILE and _is_home_of_another(environ):
                continue  # HOME was inherited from another user, as by setpriv
            # Not the defaults instead: the administrator wants this file to be used.
            raise ConfigError(f"cannot read {path}: {error.strerror}; --config FILE names another") from None
    return NO_FILE


def _is_home_of_another(environ: Mapping[str, str]) -> bool:
    try:
        return os.stat(environ.get("HOME") or "/").st_uid != os.getuid()
    except OSError:
        return True


def standard_places(environ: Mapping[str, str], uid: int) -> list[str]:
    """The paths where a configuration file is looked for if none is named, in order."""
    if uid == 0:
        return [SYSTEM_FILE]
    home = environ.get("HOME") or os.path.expanduser("~")
    base = environ.get("XDG_CONFIG_HOME", "")
    # The XDG base directory specification says that a relative path must be ignored.
    base = base if os.path.isabs(base) else os.path.join(home, ".config")
    return [os.path.join(base, "kvd/kvd.toml"), SYSTEM_FILE]


def _read_named(path: str, origin: str) -> ConfigFile:
    try:
        return _load(path)
    except OSError as error:
        raise ConfigError(f"{origin}: cannot read {path}: {error.strerror}") from None


def _load(path: str) -> ConfigFile:
    return ConfigFile(path, _parse(path, _read(path)))


def _read(path: str) -> str:
    """Read a configuration file that only its owner can have written. Raises ConfigError and OSError."""
    try:
        content = trusted_files.read(path, MAX_FILE_BYTES + 1).removeprefix(codecs.BOM_UTF8)
    except trusted_files.Untrusted as error:
        hint = "; a configuration must be one" if "regular" in str(error) else ""
        raise ConfigError(f"{path}: {error}{hint}") from None
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: more than {MAX_FILE_BYTES} bytes; this is no configuration")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}: line {line}: not UTF-8") from None


def _parse(path: str, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        # The text ends with "(at line 3, column 7)" or "(at end of document)"; the parser gives the place nowhere else.
        reason, _, place = str(error).rpartition(" (at ")
        last_line = max(1, len(text.splitlines()))
        place = place.removesuffix(")") if place.startswith("line ") else f"line {last_line}, the last"
        hint = "; texts need quotes" if reason == "Invalid value" else ""
        raise ConfigError(f"{path}: {place}: {reason}{hint}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from None


def _unknown_section(name: str) -> str:
    sections = [key.partition(".")[0] for key in OPTIONS if key.endswith("." + name)]
    if sections:
        return f"options stand in a section; write it under [{sections[0]}]"
    return "no such section" + suggestion_or_all(name, SECTIONS)
