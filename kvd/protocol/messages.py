"""The requests of the wire as typed structs, and the decoder that turns a frame's payload into them.

Typed decoding is a limit in itself: the depth is fixed by the schema, map keys are strings, values stay opaque
bytes. (Decoded without types, 16 MiB of empty arrays became 1.1 GiB and froze a server for 7 s.)
"""

from typing import Annotated, Literal

import msgspec

PROTOCOL = 1
# Refuses a bigger collection before it is built. The configured limits are lower and are errors of one request.
MAX_KEYS = 262_144
MAX_REQUESTS = 65_536

Keys = Annotated[list[str], msgspec.Meta(max_length=MAX_KEYS)]
Entries = Annotated[dict[str, bytes], msgspec.Meta(max_length=MAX_KEYS)]
Writes = Annotated[dict[str, bytes | None], msgspec.Meta(max_length=MAX_KEYS)]
Reads = Annotated[dict[str, int], msgspec.Meta(max_length=MAX_KEYS)]
Ranges = Annotated[list[tuple[str, str | None]], msgspec.Meta(max_length=MAX_KEYS)]
Id = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
# A version to read at that stands for the snapshot which this connection began last.
BEGUN = -1


class Request(msgspec.Struct, array_like=True, tag=True, forbid_unknown_fields=True, eq=False, gc=False):
    """One request: an array whose first element names it.

    ``gc=False``: a request holds no cycle, and a frame may bring thousands of them for the collector to visit.
    """


class WriteOptions(msgspec.Struct, forbid_unknown_fields=True, eq=False, gc=False, frozen=True):
    """How a write is to be done; ``ttl`` in ms, ``ttls`` too, by key. See docs/protocol.md."""

    ttl: int | None = None
    keep_ttl: bool = False
    ephemeral: bool = False
    id: Id | None = None
    since: int | None = None
    sync: bool | None = None
    ttls: dict[str, int] | None = None


class Hello(Request, tag="hello"):
    """Agree on the protocol version; on TCP also prove who one is."""

    protocol: int
    client_name: str
    token: str | None = None


class Attach(Request, tag="attach"):
    """Hands over the table of generations, in a connection's first frame; answers ``[slots, lease_ms, now, clock]``."""


class Ping(Request, tag="ping"):
    """Answers true."""


class Get(Request, tag="get"):
    """Answers the value or nil."""

    key: str


class GetMany(Request, tag="get_many"):
    """Answers the values or nils, all from one instant, or from version ``at``."""

    keys: Keys
    at: int | None = None


class Fetch(Request, tag="fetch"):
    """Answers ``[[value, version, slot, generation, deadline]…]``, all from one instant, or from version ``at``."""

    keys: Keys
    at: int | None = None


class Set(Request, tag="set"):
    """Stores all entries in one commit; answers its version."""

    entries: Entries
    how: WriteOptions | None = None


class Delete(Request, tag="delete"):
    """Deletes all keys in one commit, or none; answers ``[version, count]``."""

    keys: Keys
    missing_ok: bool = False
    how: WriteOptions | None = None


class Increment(Request, tag="increment"):
    """Adds to the number stored under a key; answers ``[value, version]``."""

    key: str
    by: int
    how: WriteOptions | None = None


class Commit(Request, tag="commit"):
    """Makes the writes (nil deletes) if nothing that was read has changed; answers the version."""

    writes: Writes
    reads: Reads | None = None
    ranges: Ranges | None = None
    snapshot: int | None = None
    how: WriteOptions | None = None


class Begin(Request, tag="begin"):
    """Answers the current version, kept readable for this connection."""


class End(Request, tag="end"):
    """Gives a snapshot back; answers whether it was held."""

    snapshot: int


class Touch(Request, tag="touch"):
    """Sets how long keys live, in ms from now (nil: without end); answers ``[found…]``."""

    keys: Keys
    ttl: int | None
    how: WriteOptions | None = None


class Ttl(Request, tag="ttl"):
    """Answers ``[ms left…]``: -1 without an end, nil for absent."""

    keys: Keys


class History(Request, tag="history"):
    """Answers ``[[version, value or nil, time, author]…]``, newest first."""

    key: str
    limit: int
    before: int | None = None


class Log(Request, tag="log"):
    """Answers ``[[version, time, author, [key…]]…]``, oldest first, from a version on or (nil) the newest."""

    from_version: int | None
    limit: int


class VersionAt(Request, tag="version_at"):
    """Answers the version that was current at a time, in µs since the epoch."""

    time: int


class Watch(Request, tag="watch"):
    """Turns the connection into a feed of the commits that concern a prefix."""

    prefix: str
    from_version: int | None = None


class Scan(Request, tag="scan"):
    """Answers ``[[[key, value, version]…], next or nil]``, in the order of the keys' UTF-8 bytes."""

    start: str
    end: str | None
    limit: int
    at: int | None = None
    keys_only: bool = False


class Metrics(Request, tag="metrics"):
    """Answers ``[[name, value]…]``."""


class Exposition(Request, tag="exposition"):
    """Answers everything that is measured as text in Prometheus' format."""


class Status(Request, tag="status"):
    """Answers ``[[name, value]…]``."""


class Reload(Request, tag="reload"):
    """Reads the configuration again; answers what changed. Administrators only."""


class Access(Request, tag="access"):
    """Answers ``[rights, reason, rules]``: what somebody may do with a key, in words. Administrators only."""

    key: str
    uid: int | None = None
    gids: Annotated[list[int], msgspec.Meta(max_length=MAX_KEYS)] = []
    certificate: str | None = None
    token: str | None = None


class SlowLog(Request, tag="slowlog"):
    """Answers ``[[time, held_us, author, [[request, count]…], [key…], more]…]``, newest first. Administrators only.

    ``reset``: they are forgotten behind the answer.
    """

    limit: int
    reset: bool = False


class Largest(Request, tag="largest"):
    """Answers ``[[[key, bytes]…], next or nil]``: the largest values of the next keys. Administrators only."""

    start: str
    limit: int


class Hottest(Request, tag="hottest"):
    """Answers ``[covered_ms, [[key, operations]…]]``, of "reads" or "writes", estimated. Administrators only."""

    by: Literal["reads", "writes"]
    limit: int


class Checkpoint(Request, tag="checkpoint"):
    """Begins a checkpoint; answers a version that it will cover. Administrators only."""


class Backup(Request, tag="backup"):
    """Turns the connection into a feed that tells all that there is, as a file, and ends. Administrators only."""


class Shutdown(Request, tag="shutdown"):
    """Stops the server; answers ``[pid]``. Administrators only."""


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
# A large frame is first cut into its requests, undecoded.
split_batch = msgspec.msgpack.Decoder[list[msgspec.Raw]](Annotated[list[msgspec.Raw], _Some]).decode
encode_replies = msgspec.msgpack.Encoder().encode
# What the decoders raise for bytes that are not a batch of requests; RecursionError for what split_batch finds nested
# too deeply.
DECODE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
