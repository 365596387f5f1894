"""TLS for ``tls://HOST:PORT``: whom to believe, and who we are.

Only imported for such an address: the standard library's ssl takes longer to import than all the rest of a short call.
"""

from __future__ import annotations

import os
import ssl

from kv.errors import KvdError
from kv.results import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from typing import Any

_READ_BYTES = 64 * 1024
# Of OpenSSL's X509_V_ERR: self-signed, self-signed in the chain, no certificate of the issuer (here, or at all).
_UNKNOWN_SIGNER = (18, 19, 20, 21)


class TlsFiles(Record):
    """Files of PEM: ``ca`` signs the daemon's certificate (None: whom the system trusts).

    ``certificate`` and ``key`` are ours, for a daemon that asks for one. What is not given comes from $KVD_CA_FILE,
    $KVD_CERTIFICATE_FILE and $KVD_KEY_FILE.
    """

    __match_args__ = __slots__ = ("ca", "certificate", "key")

    def __init__(self, *, ca: str | None = None, certificate: str | None = None, key: str | None = None) -> None:
        self.ca = ca or os.environ.get("KVD_CA_FILE") or None
        self.certificate = certificate or os.environ.get("KVD_CERTIFICATE_FILE") or None
        self.key = key or os.environ.get("KVD_KEY_FILE") or None


def context(files: TlsFiles | None) -> ssl.SSLContext:
    """What to connect with: TLS 1.3, the daemon's name checked. Raises KvdError for files that cannot be used."""
    files = files or TlsFiles()
    try:
        made = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=files.ca)
        made.minimum_version = ssl.TLSVersion.TLSv1_3
        if files.certificate is not None:
            made.load_cert_chain(files.certificate, files.key)
    except (OSError, ValueError) as error:  # SSLError is an OSError
        named = ", ".join(filter(None, (files.ca, files.certificate, files.key)))
        why = getattr(error, "strerror", None) or error
        raise KvdError(f"cannot use the TLS files {named}: {why}", "tls") from None
    return made


class TlsSocket:
    """A connected socket that speaks TLS, as far as a Connection needs one. It never waits once it has shaken hands."""

    def __init__(self, connected: _socket.socket, host: str, made: ssl.SSLContext, timeout: float | None) -> None:
        import socket

        self.family = connected.family
        # The same descriptor in an object of the class that ssl takes.
        plain = socket.socket(fileno=connected.detach())
        plain.settimeout(timeout)
        try:
            self._socket = made.wrap_socket(plain, server_hostname=host)
        except BaseException:
            plain.close()
            raise

    def send(self, data: Any) -> int:  # noqa: ANN401  # whatever holds bytes
        """Send some of ``data``. Raises BlockingIOError if nothing can go now."""
        try:
            return self._socket.send(data)
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            raise BlockingIOError from None

    def recv(self, size: int) -> bytes:
        """All that has come and is whole. Raises BlockingIOError if nothing is."""
        parts: list[bytes] = []
        try:
            # To the end: of what was taken from the kernel already, nobody would be told that it is there.
            while part := self._socket.recv(size):
                parts.append(part)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            if not parts:
                raise BlockingIOError from None
        except ssl.SSLEOFError:
            pass  # an end without TLS's own goodbye; what is missing shows in the frames
        return b"".join(parts)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        """Whatever is the same with and without TLS."""
        return getattr(self._socket, name)


def connect(connected: _socket.socket, host: str, files: TlsFiles | None, timeout: float | None) -> TlsSocket:
    """Shake hands within ``timeout`` seconds. Raises OSError."""
    try:
        return TlsSocket(connected, host, context(files), timeout)
    except ssl.SSLCertVerificationError as error:
        hint = "; $KVD_CA_FILE names the CA to believe" if error.verify_code in _UNKNOWN_SIGNER else ""
        raise OSError(f"its certificate is refused: {error.verify_message}{hint}") from error
    except ssl.SSLError as error:
        if error.reason == "WRONG_VERSION_NUMBER":
            raise OSError("it speaks no TLS") from error
        raise
