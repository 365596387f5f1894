"""TLS for ``tls://HOST:PORT``: the CA to trust, and the client's own certificate.

Imported only for such an address: the standard library's ssl takes longer to import than all the rest of a short call.
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
# OpenSSL's X509_V_ERR codes: self-signed, self-signed in the chain, no certificate of the issuer (here, or at all).
_UNKNOWN_SIGNER = (18, 19, 20, 21)


class TlsFiles(Record):
    """PEM files: ``ca`` signs the daemon's certificate (None: the CAs that the system trusts).

    ``certificate`` and ``key`` are the client's, for a daemon that asks for one. The defaults are $KVD_CA_FILE,
    $KVD_CERTIFICATE_FILE and $KVD_KEY_FILE.
    """

    __match_args__ = __slots__ = ("ca", "certificate", "key")

    def __init__(self, *, ca: str | None = None, certificate: str | None = None, key: str | None = None) -> None:
        self.ca = ca or os.environ.get("KVD_CA_FILE") or None
        self.certificate = certificate or os.environ.get("KVD_CERTIFICATE_FILE") or None
        self.key = key or os.environ.get("KVD_KEY_FILE") or None


def context(files: TlsFiles | None) -> ssl.SSLContext:
    """Return the context to connect with: TLS 1.3, the daemon's name checked. Raises KvdError for unusable files."""
    files = files or TlsFiles()
    try:
        tls = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=files.ca)
        tls.minimum_version = ssl.TLSVersion.TLSv1_3
        tls.hostname_checks_common_name = False  # a name counts only where the CA has put host names: in the SAN
        if files.certificate is not None:
            tls.load_cert_chain(files.certificate, files.key)
    except (OSError, ValueError) as error:  # SSLError is an OSError
        paths = ", ".join(filter(None, (files.ca, files.certificate, files.key)))
        reason = getattr(error, "strerror", None) or error
        raise KvdError(f"cannot use the TLS files {paths}: {reason}", "tls") from None
    return tls


class TlsSocket:
    """A connected socket that speaks TLS, with what a Stream needs. It never waits after the handshake."""

    def __init__(self, connected: _socket.socket, host: str, tls: ssl.SSLContext, timeout: float | None) -> None:
        import socket

        self.family = connected.family
        # The same descriptor in an object of the class that ssl takes.
        plain = socket.socket(fileno=connected.detach())
        plain.settimeout(timeout)
        try:
            self._socket = tls.wrap_socket(plain, server_hostname=host)
        except BaseException:
            plain.close()
            raise

    def send(self, data: Any) -> int:  # noqa: ANN401  # anything like bytes
        """Send some of ``data``; return how many bytes. Raises BlockingIOError if none can be sent now."""
        try:
            return self._socket.send(data)
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            raise BlockingIOError from None

    def recv(self, size: int) -> bytes:
        """Return the data of all complete records that have come. Raises BlockingIOError if there is none."""
        parts: list[bytes] = []
        try:
            # To the end: poll does not report data that OpenSSL has taken from the kernel already.
            while part := self._socket.recv(size):
                parts.append(part)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            if not parts:
                raise BlockingIOError from None
        except ssl.SSLEOFError:
            pass  # an end without TLS's close_notify; if data is missing, the frames show it
        return b"".join(parts)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        """Return what is the same with and without TLS."""
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
