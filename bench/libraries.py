"""How a program reads and writes with kvd and with each other library, as the library's documentation shows it.

Each opener takes a place (a socket, HOST:PORT, or a directory) and returns two functions: a get of str → bytes or None,
and a set.
"""

from collections.abc import Callable

Get = Callable[[str], bytes | None]
Put = Callable[[str, bytes], object]
# The packages that each library needs, besides the server.
NEEDS = {
    "redis": ("redis", "hiredis"), "redis_cached": ("redis", "hiredis"), "lmdb": ("lmdb",),
    "memcached": ("pymemcache",), "diskcache": ("diskcache",),
}  # fmt: skip


def near(place: str) -> tuple[Get, Put]:
    """kv.connect(near_cache=True)."""
    import kv

    db = kv.connect(place, near_cache=True)
    return db.get, db.set


def kvd(place: str) -> tuple[Get, Put]:
    """kv.connect(): every read asks the daemon."""
    import kv

    db = kv.connect(place)
    return db.get, db.set


def redis(place: str) -> tuple[Get, Put]:
    """redis-py, which uses hiredis if it is installed."""
    from redis import Redis

    client = Redis(unix_socket_path=place)
    return client.get, client.set  # type: ignore[return-value]


def redis_cached(place: str) -> tuple[Get, Put]:
    """redis-py with its own client-side cache, which works over TCP only.

    redis-py requires a server of 7.4 or newer, "to maximize compatibility with all Redis products". It uses only CLIENT
    TRACKING, which Redis has since 6.0, so this lowers the required version.
    """
    from redis import Redis
    from redis.cache import CacheConfig
    from redis.connection import CacheProxyConnection

    CacheProxyConnection.MIN_ALLOWED_VERSION = "6.0.0"
    host, _, port = place.rpartition(":")
    client = Redis(host=host, port=int(port), protocol=3, cache_config=CacheConfig(max_size=20_000))
    return client.get, client.set  # type: ignore[return-value]


def memcached(place: str) -> tuple[Get, Put]:
    """pymemcache. A set waits for its reply, like the sets of the other libraries."""
    from pymemcache.client.base import Client

    client = Client(place, no_delay=True, default_noreply=False)
    return client.get, client.set


def diskcache(place: str) -> tuple[Get, Put]:
    """diskcache: SQLite and files, which processes share through the file system."""
    from diskcache import Cache

    cache = Cache(place)
    return cache.get, cache.set


def lmdb(place: str) -> tuple[Get, Put]:
    """py-lmdb: each get begins a read transaction, so that it is never stale. Writes are not synced."""
    import lmdb as library

    env = library.open(place, max_dbs=0, sync=False, map_size=1 << 30)

    def get(key: str) -> bytes | None:
        with env.begin() as txn:
            value: bytes | None = txn.get(key.encode())
            return value

    def put(key: str, value: bytes) -> None:
        with env.begin(write=True) as txn:
            txn.put(key.encode(), value)

    return get, put


LIBRARIES: dict[str, Callable[[str], tuple[Get, Put]]] = {
    "near": near, "kvd": kvd, "redis": redis, "redis_cached": redis_cached, "memcached": memcached,
    "diskcache": diskcache, "lmdb": lmdb,
}  # fmt: skip
