"""The JSON bodies of /v2/: requests are checked against these types, and the OpenAPI document is built from them."""

import base64
import binascii
from typing import Annotated

import msgspec

from kvd.http.problems import Problem
from kvd.protocol.messages import MAX_KEYS

Key = Annotated[str, msgspec.Meta(min_length=1, description="UTF-8, at most 4096 bytes unless configured")]
Keys = Annotated[list[Key], msgspec.Meta(max_length=MAX_KEYS)]
Version = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1, description="0: absent")]
Ttl = Annotated[int, msgspec.Meta(ge=1, le=100 * 365_25 * 24 * 36_000, description="milliseconds")]


class Base64(msgspec.Struct, forbid_unknown_fields=True):
    """Bytes that are not text."""

    base64: str


Value = Annotated[str | Base64, msgspec.Meta(description="text, or any bytes as base64")]


# A larger collection is refused before it is built.
Values = Annotated[dict[str, Value], msgspec.Meta(max_length=MAX_KEYS)]
Versions = Annotated[dict[str, Version], msgspec.Meta(max_length=MAX_KEYS)]


class GetBody(msgspec.Struct, forbid_unknown_fields=True):
    """Keys to read, all at one version. ``store``: only if ``at`` is a version of this store."""

    keys: Keys
    at: Version | None = None
    store: str | None = None


class SetBody(msgspec.Struct, forbid_unknown_fields=True):
    """What to store, all in one commit."""

    entries: Values
    ttl: Ttl | None = None


class DeleteBody(msgspec.Struct, forbid_unknown_fields=True):
    """Keys to delete: all, or none if one is missing and ``missing_ok`` is false."""

    keys: Keys
    missing_ok: bool = False


class TransactionBody(msgspec.Struct, forbid_unknown_fields=True):
    """Set and delete in one commit if all keys of ``compare`` are at these versions (0: absent).

    ``store``: only if the versions belong to this store. A daemon without a data directory begins a new one each time.
    """

    compare: Versions = {}
    set: Values = {}
    delete: Keys = []
    ttl: Ttl | None = None
    store: str | None = None


class Item(msgspec.Struct):
    """A key, its version (0: absent) and its value."""

    key: str
    version: Version
    value: Value | None


class PageItem(msgspec.Struct):
    """A key, its version, and its value if the request wants values."""

    key: str
    version: Version
    value: Value | msgspec.UnsetType = msgspec.UNSET


class Items(msgspec.Struct):
    """The items in the order of the request, and the version that they were read at."""

    store: str
    version: Version
    items: list[Item]


class Page(msgspec.Struct):
    """Keys in the order of their bytes. ``next``: pass it as ``start`` for the next page; null: there is none."""

    store: str
    version: Version
    items: list[PageItem]
    next: str | None


class Committed(msgspec.Struct):
    """The version of a commit."""

    store: str
    version: Version


class Deleted(msgspec.Struct):
    """The version of a commit, and how many keys it deleted."""

    store: str
    version: Version
    deleted: int


class ProblemDetails(msgspec.Struct):
    """RFC 9457. ``code`` is for programs: one of docs/protocol.md, or one of HTTP's own."""

    type: str
    title: str
    status: int
    detail: str
    code: str


def to_bytes(value: "str | Base64") -> bytes:
    """Return the bytes that a value in JSON stands for. Raises Problem."""
    try:
        return value.encode() if isinstance(value, str) else base64.b64decode(value.base64, validate=True)
    except (binascii.Error, ValueError):
        raise Problem(400, "bad_request", "a value's base64 cannot be decoded") from None


def to_json(value: bytes) -> "str | Base64":
    """Return a value as JSON: as text if it is UTF-8."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return Base64(base64.b64encode(value).decode())
