"""The daemon's side of TLS: its certificate, and the authority that clients' certificates must come from."""

import hashlib
import logging
import ssl

from kvd.service import trusted_files
from kvd.service.config.sections import Config, Listen
from kvd.service.errors import ConfigError

logger = logging.getLogger(__name__)

_MAX_FILE_BYTES = 1024 * 1024
# X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED
_NOT_VALID_NOW = {9: "is not valid yet", 10: "has expired"}


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
    _load_chain(context, listen)
    if listen.tls_client_ca:
        try:
            with trusted_files.opened(listen.tls_client_ca) as ca:
                context.load_verify_locations(f"/proc/self/fd/{ca}")
        except (OSError, ValueError, trusted_files.Untrusted) as error:
            raise ConfigError(f"listen.tls_client_ca: cannot use {listen.tls_client_ca}: {error}") from None
        context.verify_mode = ssl.CERT_REQUIRED


def _load_chain(context: ssl.SSLContext, listen: Listen) -> None:
    # OpenSSL opens files itself, and would wait for a FIFO. So it gets those that are open already.
    try:
        with trusted_files.opened(listen.tls_certificate) as chain:
            if listen.tls_key:
                with trusted_files.opened(listen.tls_key) as key:
                    context.load_cert_chain(f"/proc/self/fd/{chain}", f"/proc/self/fd/{key}")
            else:
                context.load_cert_chain(f"/proc/self/fd/{chain}")
    except (OSError, ValueError, trusted_files.Untrusted) as error:  # SSLError is an OSError
        raise ConfigError(f"listen.tls_certificate: cannot use {listen.tls_certificate}: {error}") from None


def fingerprint(listen: Listen) -> bytes:
    """Return what changes with the content of the certificates' files."""
    digest = hashlib.sha256()
    for path in filter(None, (listen.tls_certificate, listen.tls_key, listen.tls_client_ca)):
        try:
            digest.update(hashlib.sha256(trusted_files.read(path, _MAX_FILE_BYTES)).digest())
        except (OSError, trusted_files.Untrusted):
            digest.update(b"?")
    return digest.digest()


def log_warnings(config: Config) -> None:
    """Warn of secrets that every user can read, and of a certificate that no client accepts."""
    listen = config.listen
    secrets = {"token_file": listen.token_file, "tls_key": listen.tls_key or listen.tls_certificate}
    for name, path in secrets.items():
        if path and trusted_files.is_readable_by_all(path):
            logger.warning("listen.%s: every user can read %s; run: chmod o-r %s", name, path, path)
    problem = certificate_problem(listen)
    if problem:
        logger.warning("listen.tls_certificate: %s %s", listen.tls_certificate, problem)


def certificate_problem(listen: Listen) -> str:
    """Return why no client accepts the certificate today; empty if its dates are right, or there is none."""
    if not listen.tls_certificate:
        return ""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        _load_chain(server, listen)
        with trusted_files.opened(listen.tls_certificate) as chain:
            client.load_verify_locations(f"/proc/self/fd/{chain}")
        _shake_hands(server, client)
    except ssl.SSLCertVerificationError as error:
        return _NOT_VALID_NOW.get(error.verify_code, "")
    except (OSError, ValueError, ConfigError, trusted_files.Untrusted):
        return ""  # whatever else is wrong with it is said where it is loaded
    return ""


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    """Let two ends in memory talk until the client has judged the certificate. Raises SSLError."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True)]
    for _ in range(4):  # a handshake takes two flights each
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
