"""Rules about several options together. The first rule that is broken is the error; it names one option's place."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from kvd.protocol.address import parse_host_port
from kvd.service.config.checks import is_loopback, is_path
from kvd.service.config.settings import Settings
from kvd.service.errors import ConfigError


class Problem(NamedTuple):
    """A broken rule: the option at whose place it is reported, and what is wrong."""

    key: str
    text: str


Rule = Callable[[Settings], Problem | None]


def check_combinations(settings: Settings) -> None:
    """Raise ConfigError for the first rule that ``settings`` break."""
    for rule in RULES:
        problem = rule(settings)
        if problem is not None:
            raise ConfigError(f"{settings.origin(problem.key)}: {problem.text}")


# ---------------------------------------------------------------------- sizes


def _not_more_than(small: str, big: str) -> Rule:
    """A value that could be set could otherwise not be sent."""

    def rule(settings: Settings) -> Problem | None:
        value, maximum = settings.number(small), settings.number(big)
        if value <= maximum:
            return None
        text = f"{small} ({value}) may not be more than {big} ({maximum}); change one of them"
        return Problem(small if small in settings else big, text)

    return rule


# ---------------------------------------------------------------------- TCP: authenticated, and encrypted on a network


def _useless_without_certificate(key: str) -> Rule:
    def rule(settings: Settings) -> Problem | None:
        if not settings.value(key) or _has_certificate(settings):
            return None
        return Problem(key, f"{key} without listen.tls_certificate is of no use")

    return rule


def _tcp_is_authenticated(settings: Settings) -> Problem | None:
    if not settings.value("listen.tcp") or _authenticates(settings):
        return None
    text = "TCP needs listen.token_file, a file with the token that clients must show, or listen.tls_client_ca"
    return Problem("listen.tcp", text + _and_encryption(settings.addresses("listen.tcp"), settings))


def _tcp_is_encrypted(settings: Settings) -> Problem | None:
    return _encryption_problem("listen.tcp", settings.addresses("listen.tcp"), settings)


# ---------------------------------------------------------------------- HTTP: as TCP, or open to any user of the host


def _open_http_is_on_loopback(settings: Settings) -> Problem | None:
    beyond = _beyond_loopback(_http_on_tcp(settings))
    if not settings.value("http.open") or not beyond:
        return None
    return Problem("http.listen", f"{beyond[0]!r}: http.open is for loopback alone")


def _http_is_authenticated(settings: Settings) -> Problem | None:
    if settings.value("http.open") or not _http_on_tcp(settings) or _authenticates(settings):
        return None
    text = "HTTP on TCP needs listen.token_file, a file with the token that clients must show"
    text += _and_encryption(_http_on_tcp(settings), settings)
    return Problem("http.listen", f"{text}; or, on loopback, --http-open, which lets any local user in")


def _http_is_encrypted(settings: Settings) -> Problem | None:
    if settings.value("http.open"):
        return None
    return _encryption_problem("http.listen", _http_on_tcp(settings), settings)


def _and_encryption(addresses: Iterable[str], settings: Settings) -> str:
    """What these addresses need besides, so that one error says all of it."""
    needs_tls = _beyond_loopback(addresses) and not _has_certificate(settings)
    return ", and beyond loopback TLS: set listen.tls_certificate too" if needs_tls else ""


def _encryption_problem(key: str, addresses: Iterable[str], settings: Settings) -> Problem | None:
    beyond = _beyond_loopback(addresses)
    if not beyond or _has_certificate(settings):
        return None
    return Problem(key, f"{beyond[0]!r}: beyond loopback only with TLS: set listen.tls_certificate")


# ---------------------------------------------------------------------- what is set


def _has_certificate(settings: Settings) -> bool:
    return bool(settings.value("listen.tls_certificate"))


def _authenticates(settings: Settings) -> bool:
    """Return whether TCP clients must show a token or a certificate."""
    return bool(settings.value("listen.token_file") or settings.value("listen.tls_client_ca"))


def _http_on_tcp(settings: Settings) -> list[str]:
    return [address for address in settings.addresses("http.listen") if not is_path(address)]


def _beyond_loopback(addresses: Iterable[str]) -> list[str]:
    return [address for address in addresses if not is_loopback(parse_host_port(address)[0])]


RULES: tuple[Rule, ...] = (
    _not_more_than("limits.max_key_bytes", "limits.max_frame_bytes"),
    _not_more_than("limits.max_value_bytes", "limits.max_frame_bytes"),
    _not_more_than("limits.max_value_bytes", "limits.max_reply_bytes"),
    _useless_without_certificate("listen.tls_key"),
    _useless_without_certificate("listen.tls_client_ca"),
    _tcp_is_authenticated,
    _tcp_is_encrypted,
    _open_http_is_on_loopback,
    _http_is_authenticated,
    _http_is_encrypted,
)
