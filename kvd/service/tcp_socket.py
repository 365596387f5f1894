"""Listening on TCP: the sockets, and the rule that TCP clients are authenticated, and encrypted beyond loopback."""

import errno
import ipaddress
import os
import socket
from collections.abc import Iterable

from kvd.protocol import exits
from kvd.protocol.address import parse_host_port
from kvd.service.config.sections import Listen
from kvd.service.errors import StartError
from kvd.service.unix_socket import BACKLOG


def bind_tcp_socket(address: str) -> socket.socket:
    """Return a listening TCP socket at ``HOST:PORT``. Raises StartError."""
    host, port = parse_host_port(address)
    listening = None
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(place)
        listening.listen(BACKLOG)
        listening.setblocking(False)
    except OSError as error:
        if listening is not None:
            listening.close()
        text = f"cannot listen on tcp {address}: {error.strerror}"
        if error.errno == errno.EAFNOSUPPORT and "INVOCATION_ID" in os.environ:
            text += "; the unit does not let kvd open network sockets: add ListenStream= to kvd.socket instead"
        raise StartError(exits.IO_ERROR, text) from None
    return listening


def check_exposure(sockets: Iterable[socket.socket], listen: Listen, *, has_tokens: bool, is_open: bool) -> None:
    """Raise StartError if a TCP socket would expose the data, whether we or the service manager opened it.

    Clients must authenticate, and beyond loopback the connection must be encrypted. With ``is_open`` (http.open) they
    need not authenticate, but then only loopback is allowed.
    """
    for listening in sockets:
        if listening.family != socket.AF_UNIX:
            address = listening.getsockname()[0]
            problem = _exposure(address, listen, has_tokens=has_tokens, is_open=is_open)
            if problem:
                raise StartError(exits.CONFIGURATION, f"listening on tcp {address}{problem}")


def _exposure(address: str, listen: Listen, *, has_tokens: bool, is_open: bool) -> str:
    """What is wrong with listening at ``address``, to append to an error; empty if nothing is."""
    is_on_loopback = ipaddress.ip_address(address).is_loopback
    if is_open:
        return "" if is_on_loopback else ": http.open is for loopback alone"
    if not has_tokens and not listen.tls_client_ca:
        return " needs listen.token_file"
    if not listen.tls_certificate and not is_on_loopback:
        return ": beyond loopback only with TLS: set listen.tls_certificate"
    return ""
