"""Checks of a single value. Each raises ValueError, whose text says what is wrong with the value."""

import ipaddress
import os
from collections.abc import Callable
from typing import Any

from kvd.protocol.address import MAX_UNIX_PATH_BYTES, is_network, normalize, parse_host_port
from kvd.service.config.wording import suggestion

LOG_TARGETS = ("auto", "stderr", "syslog")

Check = Callable[[Any], None]


def accept_any(_: object) -> None:
    """Accept every value."""
    return


def check_range(minimum: int, maximum: int) -> Callable[[int], None]:
    """Return a check that accepts numbers from ``minimum`` to ``maximum``, both included."""

    def check(value: int) -> None:
        if not minimum <= value <= maximum:
            raise ValueError(f"{value} is too {'small' if value < minimum else 'big'}")

    return check


def check_choice(*choices: str) -> Callable[[str], None]:
    """Return a check that accepts only ``choices``."""

    def check(value: str) -> None:
        if value not in choices:
            raise ValueError(f"{value!r} is none of them{suggestion(value, choices)}")

    return check


def check_text(text: str) -> None:
    """Reject control characters, which could forge a line of the log or change a terminal."""
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in text):
        raise ValueError(f"control characters in {text!r}")


def check_path(path: str) -> None:
    """Reject ``~``, which only a shell expands."""
    if path.startswith("~"):
        raise ValueError(f"{path!r}: ~ is not expanded, write the whole path")


def check_socket_path(path: str) -> None:
    """Reject what cannot be the path of a Unix socket."""
    if not path:
        return  # the default place
    check_path(path)
    path = normalize(path)
    if is_network(path):
        raise ValueError(f"{path} is an address for clients; kv serve needs a path here, and --tcp HOST:PORT for TCP")
    length = len(os.fsencode(path))
    if length > MAX_UNIX_PATH_BYTES:
        raise ValueError(f"the path has {length} bytes, and a socket's may have {MAX_UNIX_PATH_BYTES}")


def check_mode(mode: str) -> None:
    """Reject what is not a file mode in octal digits without special bits."""
    if len(mode) != 4 or not set(mode) <= set("01234567"):
        raise ValueError(f"{mode!r} is not four octal digits")
    if int(mode, 8) > 0o777:
        raise ValueError(f"{mode!r} is more than 0777")


def check_tcp_addresses(addresses: tuple[str, ...]) -> None:
    """Reject an address that is not HOST:PORT."""
    for address in addresses:
        parse_host_port(address)


def check_http_addresses(addresses: tuple[str, ...]) -> None:
    """Reject an address that is neither HOST:PORT nor the path of a Unix socket."""
    for address in addresses:
        if is_path(address):
            check_socket_path(address)
        else:
            parse_host_port(address)


def check_log_target(target: str) -> None:
    """Reject what is neither one of the targets nor an absolute path."""
    if target not in LOG_TARGETS and not target.startswith("/"):
        raise ValueError(f"{target!r} is none of them{suggestion(target, LOG_TARGETS)}")


def is_path(address: str) -> bool:
    """Return whether ``address`` is the path of a Unix socket rather than HOST:PORT."""
    return "/" in address


def is_loopback(host: str) -> bool:
    """Return whether ``host`` is a loopback address or ``localhost``. No other name counts, whatever it resolves to."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    # Not is_loopback for IPv6: since Python 3.13 it is also true for ::ffff:127.0.0.1.
    return address.is_loopback if address.version == 4 else address == ipaddress.IPv6Address("::1")
