"""``kv.connect()``: chooses between a client with a near cache and one without."""

from __future__ import annotations

from kv.blocking.client import Client
from kv.settings import DEFAULT_TIMEOUT_S

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal, overload

    from kv.blocking.tls import TlsFiles
    from kv.near_cache.blocking import NearClient
    from kv.near_cache.entries import NearCacheLimits
    from kv.wire.codecs import Codec

if TYPE_CHECKING:

    @overload
    def connect(
        address: str | None = None,
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        token_file: str | None = None,
        codec: Codec | None = None,
        near_cache: Literal[True] | NearCacheLimits,
        busy_poll_us: int = 0,
        tls: TlsFiles | None = None,
    ) -> NearClient: ...

    @overload
    def connect(
        address: str | None = None,
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        token_file: str | None = None,
        codec: Codec | None = None,
        near_cache: bool | NearCacheLimits = False,
        busy_poll_us: int = 0,
        tls: TlsFiles | None = None,
    ) -> Client: ...


def connect(
    address: str | None = None,
    *,
    timeout: float | None = DEFAULT_TIMEOUT_S,
    token_file: str | None = None,
    codec: Codec | None = None,
    near_cache: bool | NearCacheLimits = False,
    busy_poll_us: int = 0,
    tls: TlsFiles | None = None,
) -> Client:
    """Return a client of the daemon at ``address``: a socket's path, ``tcp://HOST:PORT`` or ``tls://HOST:PORT``.

    None means ``$KVD_SOCKET``, else the user's own daemon, else the system's. ``timeout`` is in seconds for each call
    (None: wait for ever). ``token_file`` holds the token that a TCP listener asks for. ``tls`` names the files of the
    CA to trust and of the client's certificate. ``near_cache``: keep what is read, and answer from it for as long as it
    is certainly current (Unix sockets only). ``busy_poll_us``: look for a reply for this long before sleeping until it
    comes, which takes a processor and saves being woken (the daemon has an option of the same name). Nothing is opened
    before the first call. Raises ValueError for a malformed address, timeout or time to poll.
    """
    if near_cache:
        from kv.loading import importing

        with importing:
            from kv.near_cache.blocking import NearClient

        limits = None if near_cache is True else near_cache
        return NearClient(
            address, timeout=timeout, token_file=token_file, codec=codec, busy_poll_us=busy_poll_us, limits=limits
        )
    return Client(address, timeout=timeout, token_file=token_file, codec=codec, busy_poll_us=busy_poll_us, tls=tls)
