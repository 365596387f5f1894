"""Conditional requests (RFC 9110, 13): the entity tag of a key is its version together with the store's id."""

from kvd.http.requests import Request


def tag(version: int, store_id: str) -> bytes:
    """Return the header line with the entity tag."""
    return b'ETag: "%d.%s"\r\n' % (version, store_id.encode())


def is_conditional(request: Request) -> bool:
    """Whether the request has a condition."""
    return b"if-match" in request.headers or b"if-none-match" in request.headers


def holds_if_match(request: Request, version: int, store_id: str) -> bool:
    """Whether If-Match permits the request. Version 0 means that the key is absent; weak tags match nothing."""
    tags = request.headers.get(b"if-match")
    return tags is None or (bool(version) and _match(tags, version, store_id, weak=False))


def holds_if_none_match(request: Request, version: int, store_id: str) -> bool:
    """Whether If-None-Match permits the request."""
    tags = request.headers.get(b"if-none-match")
    return tags is None or not version or not _match(tags, version, store_id, weak=True)


def _match(header: bytes, version: int, store_id: str, *, weak: bool) -> bool:
    ours = b'"%d.%s"' % (version, store_id.encode())
    tags = [each.strip() for each in header.split(b",")]
    if weak:
        tags = [each.removeprefix(b"W/") for each in tags]
    return tags == [b"*"] or ours in tags
