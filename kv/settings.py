"""How a client reaches its daemon: what ``connect`` was given, checked once and then fixed."""

from __future__ import annotations

import os

from kv.errors import KvdError
from kvd.protocol.address import is_loopback, is_network, normalize

TYPE_CHECKING = False  # importing typing to ask it would cost the short-lived command 7 ms
if TYPE_CHECKING:
    from typing import NoReturn

    from kv.blocking.tls import TlsFiles
    from kv.wire.codecs import Codec

DEFAULT_TIMEOUT_S = 5.0
MAX_TIMEOUT_S = 1_000_000_000  # the system's calls take about nine times that
MAX_BUSY_POLL_US = 1_000_000


class ClientSettings:
    """A client's address, time limit and identity: ``client.settings``. Cannot be changed.

    ``address`` is None for the default addresses, ``timeout`` is in seconds for each call (None: no limit),
    ``token_file`` and ``tls`` identify the client over TCP, ``codec`` encodes values, ``busy_poll_us`` is how long the
    blocking client looks for a reply before it sleeps. Raises ValueError for a malformed address, timeout or time.

    The default addresses are a rule for the first connection. Where the client first finds a daemon, it stays: so no
    connection, watch or mirror of it ever goes over to another daemon with other data.
    """

    __slots__ = ("_found", "address", "busy_poll_us", "codec", "timeout", "tls", "token_file")

    address: str | None
    timeout: float | None
    token_file: str | None
    codec: Codec
    tls: TlsFiles | None
    busy_poll_us: int
    _found: list[str]

    def __init__(
        self,
        address: str | None = None,
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        token_file: str | None = None,
        codec: Codec | None = None,
        tls: TlsFiles | None = None,
        busy_poll_us: int = 0,
    ) -> None:
        if address is not None:
            address = normalize(address)
        if timeout is not None and not 0 < timeout <= MAX_TIMEOUT_S:
            raise ValueError(f"a timeout is None or seconds above 0, at most {MAX_TIMEOUT_S}, not {timeout}")
        if not 0 <= busy_poll_us <= MAX_BUSY_POLL_US:
            raise ValueError(f"busy_poll_us is 0 to {MAX_BUSY_POLL_US}, not {busy_poll_us}")
        if codec is None:
            from kv.loading import importing

            with importing:
                from kv.wire.codecs import full

                codec = full()
        fix = object.__setattr__  # past the refusal below
        fix(self, "address", address)
        fix(self, "timeout", timeout)
        fix(self, "token_file", token_file)
        fix(self, "codec", codec)
        fix(self, "tls", tls)
        fix(self, "busy_poll_us", busy_poll_us)
        fix(self, "_found", [])  # the address at which the client first found a daemon

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a client's settings cannot be changed: connect with another {name}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a client's settings cannot be changed: connect without {name}")

    def __repr__(self) -> str:
        return f"ClientSettings({self.address!r}, timeout={self.timeout!r}, token_file={self.token_file!r})"

    @property
    def home(self) -> str | None:
        """The only address to connect to; None before a daemon has been found at one of the default addresses."""
        return self._found[0] if self._found else self.address

    def settle(self, address: str) -> bool:
        """Note that a daemon was found at ``address``; whether the client belongs there."""
        if not self._found:
            self._found.append(address)  # another thread may have been quicker: the first of the list counts
        return self._found[0] == address

    def token_for(self, address: str) -> str | None:
        """Return the token to show at ``address``; None where none is needed, or there is none. Raises KvdError.

        A token is a password: it never goes to another host in clear.
        """
        token = read_token(self.token_file) if is_network(address) else None
        if token is not None and address.startswith("tcp://") and not is_loopback(address):
            raise KvdError(f"the token would go to {address} in clear: write tls:// instead of tcp://", "token_file")
        return token


def read_token(path: str | None) -> str | None:
    """Return the token in the file at ``path``, else ``$KVD_TOKEN_FILE``; None without either. Raises KvdError."""
    path = path or os.environ.get("KVD_TOKEN_FILE")
    if not path:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(4096).strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise KvdError(f"cannot read the token file {path}: {reason}", "token_file") from error
