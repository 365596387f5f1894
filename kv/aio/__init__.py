"""The asyncio client: ``db = kv.aio.connect()``, and then as the blocking one, with ``await`` and ``async for``.

All calls made in one turn of the event loop go to the daemon in one frame, by themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, overload

from kv.aio.client import AsyncClient
from kv.aio.scopes import AsyncLock, AsyncPipeline, AsyncSnapshot, AsyncTransaction
from kv.settings import DEFAULT_TIMEOUT_S

if TYPE_CHECKING:
    from kv.blocking.tls import TlsFiles
    from kv.near_cache.aio import AsyncNearClient
    from kv.near_cache.entries import NearCacheLimits
    from kv.wire.codecs import Codec

__all__ = ["AsyncClient", "AsyncLock", "AsyncPipeline", "AsyncSnapshot", "AsyncTransaction", "connect"]


@overload
def connect(
    address: str | None = None,
    *,
    timeout: float | None = DEFAULT_TIMEOUT_S,
    token_file: str | None = None,
    codec: Codec | None = None,
    near_cache: Literal[True] | NearCacheLimits,
    tls: TlsFiles | None = None,
) -> AsyncNearClient: ...


@overload
def connect(
    address: str | None = None,
    *,
    timeout: float | None = DEFAULT_TIMEOUT_S,
    token_file: str | None = None,
    codec: Codec | None = None,
    near_cache: bool | NearCacheLimits = False,
    tls: TlsFiles | None = None,
) -> AsyncClient: ...


def connect(
    address: str | None = None,
    *,
    timeout: float | None = DEFAULT_TIMEOUT_S,
    token_file: str | None = None,
    codec: Codec | None = None,
    near_cache: bool | NearCacheLimits = False,
    tls: TlsFiles | None = None,
) -> AsyncClient:
    """Return a client of the daemon at ``address``; as kv.connect. Nothing is opened before the first call."""
    if near_cache:
        from kv.loading import importing

        with importing:
            from kv.near_cache.aio import AsyncNearClient

        limits = None if near_cache is True else near_cache
        return AsyncNearClient(address, timeout=timeout, token_file=token_file, codec=codec, limits=limits)
    return AsyncClient(address, timeout=timeout, token_file=token_file, codec=codec, tls=tls)
