"""The requests of the wire as typed structs, and the decoder that turns a frame's payload into them.

Typed decoding is a limit in itself: the schema fixes the depth, map keys are strings, values stay opaque bytes.
(Decoded without types, 16 MiB of empty arrays became 1.1 GiB and froze a daemon for 7 s.)
"""

from typing import Annotated, Literal

import msgspec

PROTOCOL = 1
# A larger collection is refused before it is built. The configured limits are lower, and fail only one request.
MAX_KEYS = 262_144
MAX_REQUESTS = 65_536

Keys = Annotated[list[str], msgspec.Meta(max_length=MAX_KEYS)]
Entries = Annotated[dict[str, bytes], msgspec.Meta(max_length=MAX_KEYS)]
Writes = Annotated[dict[str, bytes | None], msgspec.Meta(max_length=MAX_KEYS)]
Reads = Annotated[dict[str, int], msgspec.Meta(max_length=MAX_KEYS)]
Ttls = Annotated[dict[str, int], msgspec.Meta(max_length=MAX_KEYS)]
Ranges = Annotated[list[tuple[str, str | None]], msgspec.Meta(max_length=MAX_KEYS)]
Id = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
# As a version to read at: the snapshot that this connection began last.
BEGUN = -1


class Request(msgspec.Struct, array_like=True, tag=True, forbid_unknown_fields=True, eq=False, gc=False):
    """One request: an array whose first element names it.

    ``gc=False``: a request holds no cycle, and the collector would visit thousands of them for a large frame.
    """


class WriteOptions(msgspec.Struct, forbid_unknown_fields=True, eq=False, gc=False, frozen=True):
    """The options of a write; ``ttl`` is in ms, and so is ``ttls``, by key. See docs/protocol.md."""

    ttl: int | None = None
    keep_ttl: bool = False
    ephemeral: bool = False
    id: Id | None = None
    since: int | None = None
    sync: bool | None = None
    ttls: Ttls | None = None


class Hello(Request, tag="hello"):
    """Agree on the protocol version; over TCP, also authenticate."""

    protocol: int
    client_name: str
    token: str | None = None


class Attach(Request, tag="attach"):
    """Request the table of generations, in a connection's first frame; returns ``[slots, lease_ms, now, clock]``."""


class Ping(Request, tag="ping"):
    """Return true."""


class Get(Request, tag="get"):
    """Return the value or nil."""

    key: str


class GetMany(Request, tag="get_many"):
    """Return the values or nils, all of one instant, or of version ``at``."""

    keys: Keys
    at: int | None = None


class Fetch(Request, tag="fetch"):
    """Return ``[[value, version, slot, generation, deadline]…]``, all of one instant, or of version ``at``."""

    keys: Keys
    at: int | None = None


class Set(Request, tag="set"):
    """Store all entries in one commit; return its version."""

    entries: Entries
    how: WriteOptions | None = None


class Delete(Request, tag="delete"):
    """Delete all keys in one commit, or none; return ``[version, count]``."""

    keys: Keys
    missing_ok: bool = False
    how: WriteOptions | None = None


class Increment(Request, tag="increment"):
    """Add to the number stored under a key; return ``[value, version]``."""

    key: str
    by: int
    how: WriteOptions | None = None


class Commit(Request, tag="commit"):
    """Make the writes (nil deletes) if nothing that was read has changed; return the version."""

    writes: Writes
    reads: Reads | None = None
    ranges: Ranges | None = None
    snapshot: int | None = None
    how: WriteOptions | None = None


class Begin(Request, tag="begin"):
    """Return the current version, and keep it readable for this connection."""


class End(Request, tag="end"):
    """Release a snapshot; return whether it was held."""

    snapshot: int


class Touch(Request, tag="touch"):
    """Set the TTL of keys, in ms from now (nil: none); return ``[exists…]``."""

    keys: Keys
    ttl: int | None
    how: WriteOptions | None = None


class Ttl(Request, tag="ttl"):
    """Return ``[remaining ms…]``: -1 for a key that does not expire, nil for an absent key."""

    keys: Keys


class History(Request, tag="history"):
    """Return ``[[version, value or nil, time, author]…]``, newest first."""

    key: str
    limit: int
    before: int | None = None


class Log(Request, tag="log"):
    """Return ``[[version, time, author, [key…]]…]``, oldest first, from a version on, or (nil) the newest ones.

    ``before``: of the newest ones only those below this version.
    """

    from_version: int | None
    limit: int
    before: int | None = None


class VersionAt(Request, tag="version_at"):
    """Return the version that was current at a time, in µs since the epoch."""

    time: int


class Watch(Request, tag="watch"):
    """Turn the connection into a feed of the commits to keys below a prefix."""

    prefix: str
    from_version: int | None = None


class Scan(Request, tag="scan"):
    """Return ``[[[key, value, version]…], next or nil]``, in the order of the keys' UTF-8 bytes."""

    start: str
    end: str | None
    limit: int
    at: int | None = None
    keys_only: bool = False


class Metrics(Request, tag="metrics"):
    """Return ``[[name, value]…]``."""


class Exposition(Request, tag="exposition"):
    """Return all metrics as text in Prometheus' format."""


class Status(Request, tag="status"):
    """Return ``[[name, value]…]``."""


class Reload(Request, tag="reload"):
    """Read the configuration again; return what changed. Administrators only."""


class Access(Request, tag="access"):
    """Return ``[rights, reason, rules]``: what a user may do with a key, in words. Administrators only."""

    key: str
    uid: int | None = None
    gids: Annotated[list[int], msgspec.Meta(max_length=MAX_KEYS)] = []
    certificate: str | None = None
    token: str | None = None


class SlowLog(Request, tag="slowlog"):
    """Return ``[[time, held_us, author, [[request, count]…], [key…], more]…]``, newest first. Administrators only.

    ``reset``: clear the slow log afterwards.
    """

    limit: int
    reset: bool = False


class Largest(Request, tag="largest"):
    """Return ``[[[key, bytes]…], next or nil]``: the largest values of the next keys. Administrators only."""

    start: str
    limit: int


class Hottest(Request, tag="hottest"):
    """Return ``[covered_ms, [[key, operations]…]]``, of "reads" or "writes", estimated. Administrators only."""

    by: Literal["reads", "writes"]
    limit: int


class Checkpoint(Request, tag="checkpoint"):
    """Begin a checkpoint; return a version that it will cover. Administrators only."""


class Backup(Request, tag="backup"):
    """Turn the connection into a stream of all data, as a backup file, that then ends. Administrators only."""


class Shutdown(Request, tag="shutdown"):
    """Stop the daemon; return ``[pid]``. Administrators only."""


AnyRequest = (
    Hello
    | Attach
    | Ping
    | Get
    | GetMany
    | Fetch
    | Set
    | Delete
    | Increment
    | Commit
    | Begin
    | End
    | Scan
    | Touch
    | Ttl
    | History
    | Log
    | VersionAt
    | Watch
    | Metrics
    | Exposition
    | Status
    | Reload
    | Access
    | SlowLog
    | Largest
    | Hottest
    | Checkpoint
    | Backup
    | Shutdown
)

decode_request = msgspec.msgpack.Decoder[AnyRequest](AnyRequest).decode
_Some = msgspec.Meta(min_length=1, max_length=MAX_REQUESTS)
decode_batch = msgspec.msgpack.Decoder[list[AnyRequest]](Annotated[list[AnyRequest], _Some]).decode
# Cuts a large frame into its requests, undecoded.
split_batch = msgspec.msgpack.Decoder[list[msgspec.Raw]](Annotated[list[msgspec.Raw], _Some]).decode
encode_replies = msgspec.msgpack.Encoder().encode
# What the decoders raise for bytes that are not a batch of requests; split_batch raises RecursionError for bytes that
# are nested too deeply.
DECODE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
