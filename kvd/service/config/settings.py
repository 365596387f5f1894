"""The options that the sources set, each with its place, so that an error can name it."""

import os
from collections.abc import Callable, Mapping

import msgspec

from kvd.service.config.options import OPTIONS, Value
from kvd.service.errors import ConfigError


class Setting(msgspec.Struct, frozen=True):
    """One option as one source sets it. A relative path starts at ``directory``; ``origin`` is its place in words."""

    value: Value
    origin: str
    directory: str


def setting(convert: Callable[[], Value], origin: str, directory: str) -> Setting:
    """Return the setting that ``convert`` makes of a source's text. Raises ConfigError, which names ``origin``."""
    try:
        return Setting(convert(), origin, directory)
    except ValueError as error:
        raise ConfigError(f"{origin}: {error}") from None


class Settings:
    """The options that are set, by key. The others have their defaults."""

    def __init__(self, by_key: Mapping[str, Setting]) -> None:
        self._by_key = by_key

    def __contains__(self, key: str) -> bool:
        return key in self._by_key

    def value(self, key: str) -> Value:
        """The value of an option, whether it is set or not."""
        return self._by_key[key].value if key in self._by_key else OPTIONS[key].default

    def number(self, key: str) -> int:
        """The value of an option that is a number."""
        value = self.value(key)
        assert isinstance(value, int)
        return value

    def addresses(self, key: str) -> tuple[str, ...]:
        """The value of an option that is a list."""
        value = self.value(key)
        assert isinstance(value, tuple)
        return value

    def origin(self, key: str) -> str:
        """The place where an option is set, in words."""
        return self._by_key[key].origin

    def sections(self) -> dict[str, dict[str, Value]]:
        """The values that are set, by section and name."""
        sections: dict[str, dict[str, Value]] = {}
        for key, each in self._by_key.items():
            section, _, name = key.partition(".")
            sections.setdefault(section, {})[name] = each.value
        return sections

    def absolute(self, key: str, path: str) -> str:
        """``path``, which is a part of the value of ``key``, as an absolute path. Raises ConfigError."""
        return absolute(path, self._by_key[key].directory, self._by_key[key].origin)


def absolute(path: str, directory: str, origin: str) -> str:
    """``path`` as an absolute path, from ``directory`` or (if that is empty) the current one. Raises ConfigError."""
    try:
        return os.path.abspath(os.path.join(directory, path))
    except OSError as error:
        raise ConfigError(f"{origin}: the current directory cannot be read ({error}); write a whole path") from None
