"""How a program reads and writes with each library that stands beside kvd, as that library's documentation shows it.

Each opener takes a place (a socket, HOST:PORT, or a directory) and returns a get of str → bytes or None, and a set.
"""

from collections.abc import Callable

Get = Callable[[str], bytes | None]
Put = Callable[[str, bytes], object]
# What has to be installed for each, besides the server.
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
    """redis-py, which uses hiredis where that is installed."""
    from redis import Redis

    client = Redis(unix_socket_path=place)
    return client.get, client.set  # type: ignore[return-value]


def redis_cached(place: str) -> tuple[Get, Put]:
    """redis-py with its own client-side cache, which it has over TCP only.

    It asks for a server of 7.4 at least, "to maximize compatibility with all Redis products"; what it uses, CLIENT
    TRACKING, has been there since 6.0, so it is told that this server will do.
    """
    from redis import Redis
    from redis.cache import CacheConfig
    from redis.connection import CacheProxyConnection

    CacheProxyConnection.MIN_ALLOWED_VERSION = "6.0.0"
    host, _, port = place.rpartition(":")
    client = Redis(host=host, port=int(port), protocol=3, cache_config=CacheConfig(max_size=20_000))
    return client.get, client.set  # type: ignore[return-value]


def memcached(place: str) -> tuple[Get, Put]:
    """pymemcache; a set waits for its answer, as everybody else's does."""
    from pymemcache.client.base import Client

    client = Client(place, no_delay=True, default_noreply=False)
    return client.get, client.set


def diskcache(place: str) -> tuple[Get, Put]:
    """diskcache: SQLite and files, shared by processes through the file system."""
    from diskcache import Cache

    cache = Cache(place)
    return cache.get, cache.set


def lmdb(place: str) -> tuple[Get, Put]:
    """py-lmdb: a read transaction begun for each get, so that it is never stale; writes are not synced."""
    import lmdb as library

    env = library.open(place, max_dbs=0, sync=False, map_size=1 << 30)

    def get(key: str) -> bytes | None:
        with env.begin() as txn:
            found: bytes | None = txn.get(key.encode())
            return found

    def put(key: str, value: bytes) -> None:
        with env.begin(write=True) as txn:
            txn.put(key.encode(), value)

    return get, put


LIBRARIES: dict[str, Callable[[str], tuple[Get, Put]]] = {
    "near": near, "kvd": kvd, "redis": redis, "redis_cached": redis_cached, "memcached": memcached,
    "diskcache": diskcache, "lmdb": lmdb,
}  # fmt: skip
