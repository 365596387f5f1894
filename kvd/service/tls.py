"""The daemon's side of TLS: its certificate, and the authority that clients' certificates must come from."""

import ssl

from kvd.service.config.sections import Listen
from kvd.service.errors import ConfigError


def server_context(listen: Listen) -> ssl.SSLContext | None:
    """Return the TLS 1.3 context for TCP, None without TLS. Raises ConfigError for a file that cannot be used."""
    if not listen.tls_certificate:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    _load(context, listen)
    return context


def _load(context: ssl.SSLContext, listen: Listen) -> None:
    """Load the certificates from their files. Raises ConfigError."""
    try:
        context.load_cert_chain(listen.tls_certificate, listen.tls_key or None)
    except (OSError, ValueError) as error:  # SSLError is an OSError
        raise ConfigError(f"listen.tls_certificate: cannot use {listen.tls_certificate}: {error}") from None
    if listen.tls_client_ca:
        try:
            context.load_verify_locations(listen.tls_client_ca)
        except (OSError, ValueError) as error:
            raise ConfigError(f"listen.tls_client_ca: cannot use {listen.tls_client_ca}: {error}") from None
        context.verify_mode = ssl.CERT_REQUIRED
