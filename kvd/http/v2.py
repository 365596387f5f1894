"""The routes under /v2/."""

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from kvd.http import conditions
from kvd.http.models import (
    Committed,
    DeleteBody,
    Deleted,
    GetBody,
    Item,
    Items,
    Page,
    PageItem,
    SetBody,
    TransactionBody,
    to_bytes,
    to_json,
)
from kvd.http.problems import Problem, not_allowed
from kvd.http.request_context import RequestContext
from kvd.http.requests import decoded
from kvd.http.responses import BYTES, JSON, JSON_ERRORS, Response
from kvd.protocol import MAX_VERSION, messages, split_version
from kvd.protocol.messages import WriteOptions
from kvd.protocol.ranges import prefix_end
from kvd.requests.turns import Steps
from kvd.server.feed_writer import EventSource

PAGE_KEYS = 1_000
# How many items of a body are converted in one step.
STEP_ITEMS = 256
KEY_PREFIX = b"/v2/keys/"
Body = TypeVar("Body")


# ---------------------------------------------------------------------- one key


def key_route(context: RequestContext) -> Steps[Response]:
    """``/v2/keys/{key}``."""
    key = decoded(context.request.path[len(KEY_PREFIX) :], "the key")
    if not key:
        raise Problem(400, "bad_request", "a key has at least one byte")
    match context.request.verb:
        case "GET":
            return (yield from _get(context, key))
        case "PUT":
            return (yield from _put(context, key))
        case "DELETE":
            return (yield from _delete(context, key))
    raise not_allowed("GET", "HEAD", "PUT", "DELETE")


def _get(context: RequestContext, key: str) -> Steps[Response]:
    at = _at(context, *_version(context.request.parameters("at"), "at"))
    ((value, version, *_),) = yield from context.ask(messages.Fetch([key], at))
    store_id = context.executor.store_id
    tag = conditions.tag(version, store_id)
    if not conditions.holds_if_match(context.request, version, store_id):
        raise _failed(f"the key is at version {version}" if version else "there is no such key")
    if value is None:
        raise Problem(404, "not_found", "no such key")
    if not conditions.holds_if_none_match(context.request, version, store_id):
        return Response(304, headers=tag)
    return Response(200, value, BYTES, tag)


def _put(context: RequestContext, key: str) -> Steps[Response]:
    request = context.request
    options = _options(_number(request.parameters("ttl"), "ttl", minimum=1))
    before = yield from _reads_for(context, key)
    existed = before != 0
    if conditions.is_conditional(request):
        version = yield from _commit_if(context, messages.Commit({key: request.body}, {key: before}, how=options))
    else:
        version = yield from context.ask(messages.Set({key: request.body}, options))
    return Response(204 if existed else 201, headers=conditions.tag(version, context.executor.store_id))


def _delete(context: RequestContext, key: str) -> Steps[Response]:
    context.request.parameters()
    if not conditions.is_conditional(context.request):
        yield from context.ask(messages.Delete([key]))
        return Response(204)
    before = yield from _reads_for(context, key)
    yield from _commit_if(
        context, messages.Commit({key: None}, {key: before})
    )  # raises if the peer has no right to that
    if not before:
        raise Problem(404, "not_found", "no such key")
    return Response(204)


def _reads_for(context: RequestContext, key: str) -> Steps[int]:
    """Return the current version of a key (0: absent) if the request's conditions hold for it, else raise Problem.

    A client without the right to read learns nothing from that: the commit that follows declares a read of the key, and
    is refused.
    """
    _, version = context.executor.peek(key)
    if not conditions.is_conditional(context.request):
        return version
    store_id = context.executor.store_id
    holds = conditions.holds_if_match(context.request, version, store_id)
    if not holds or not conditions.holds_if_none_match(context.request, version, store_id):
        # This raises if the peer may not read; and the answer must wait until what it shows is durable.
        yield from context.ask(messages.Fetch([key]))
        raise _failed(f"the key is at version {version}" if version else "there is no such key")
    return version


def _commit_if(context: RequestContext, commit: messages.Commit) -> Steps[int]:
    try:
        version: int = yield from context.ask(commit)
    except Problem as problem:
        if problem.code == "conflict":
            raise _failed(problem.detail) from None
        raise
    return version


def _failed(detail: str) -> Problem:
    return Problem(412, "conflict", f"a condition does not hold: {detail}; nothing was changed")


# ---------------------------------------------------------------------- many keys


def keys_route(context: RequestContext) -> Steps[Response]:
    """``/v2/keys``: a page of keys in order."""
    if context.request.verb != "GET":
        raise not_allowed("GET", "HEAD")
    query = context.request.parameters("prefix", "limit", "start", "after", "at", "values")
    prefix = query.get("prefix", "")
    start = max(prefix, query.get("start", ""), query["after"] + "\0" if "after" in query else "", key=str.encode)
    limit = _number(query, "limit", minimum=1)
    if query.get("values", "false") not in ("true", "false"):
        raise Problem(400, "bad_request", "values must be true or false")
    with_values = query.get("values") == "true"
    at = _at(context, *_version(query, "at"))
    limit = min(PAGE_KEYS, context.executor.limits.max_keys_per_request) if limit is None else limit
    page = yield from context.ask(messages.Scan(start, prefix_end(prefix), limit, at=at, keys_only=not with_values))
    executor = context.executor
    items = [
        PageItem(each.key, each.version, to_json(each.value) if with_values else msgspec.UNSET) for each in page.items
    ]
    return _json(Page(executor.store_id, executor.version if at is None else at, items, page.next))


def get_route(context: RequestContext) -> Steps[Response]:
    """``POST /v2/get``."""
    body = _body(context, GetBody)
    at = _at(context, body.at, body.store)
    entries = (yield from context.ask(messages.Fetch(body.keys, at))) if body.keys else []
    executor = context.executor
    items = []
    for number, (key, (value, version, *_)) in enumerate(zip(body.keys, entries, strict=True)):
        items.append(Item(key, version, None if value is None else to_json(value)))
        if not number % STEP_ITEMS:
            yield
    return _json(Items(executor.store_id, executor.version if at is None else at, items))


def set_route(context: RequestContext) -> Steps[Response]:
    """``POST /v2/set``."""
    body = _body(context, SetBody)
    if not body.entries:
        raise Problem(400, "bad_request", "entries must not be empty")
    entries = yield from _as_bytes(body.entries)
    return _committed(context, (yield from context.ask(messages.Set(entries, _options(body.ttl)))))


def delete_route(context: RequestContext) -> Steps[Response]:
    """``POST /v2/delete``."""
    body = _body(context, DeleteBody)
    if not body.keys:
        raise Problem(400, "bad_request", "keys must not be empty")
    keys = list(dict.fromkeys(body.keys))
    version, count = yield from context.ask(messages.Delete(keys, body.missing_ok))
    return _json(Deleted(context.executor.store_id, version, count))


def transaction_route(context: RequestContext) -> Steps[Response]:
    """``POST /v2/transaction``."""
    body = _body(context, TransactionBody)
    if both := body.set.keys() & set(body.delete):
        raise Problem(400, "bad_request", f"{min(both)!r} stands in both set and delete")
    store_id = context.executor.store_id
    if body.store is not None and body.store != store_id:
        raise Problem(409, "conflict", "the versions are of another store; nothing was changed", conflicts=[])
    writes: dict[str, bytes | None] = {}
    writes |= yield from _as_bytes(body.set)
    writes |= dict.fromkeys(body.delete)
    return _committed(context, (yield from context.ask(messages.Commit(writes, body.compare, how=_options(body.ttl)))))


# ---------------------------------------------------------------------- the feed


def watch_route(context: RequestContext) -> Steps[EventSource]:
    """``/v2/watch``: server-sent events, until the client or the server closes."""
    if context.request.method != "GET":
        raise not_allowed("GET")
    query = context.request.parameters("prefix", "from")
    last = context.request.headers.get(b"last-event-id")
    if last:  # a browser reconnects, and says which event it received last
        query["from"] = last.decode("latin-1")
    begin, store_id = _version(query, "from")
    if begin is not None and store_id != context.executor.store_id:
        begin = MAX_VERSION  # of another store, or a bare number: the feed begins with a reset
    yield from context.ask(messages.Watch(query.get("prefix", ""), begin))
    feed = context.peer.feed
    assert feed is not None
    return feed


# ---------------------------------------------------------------------- bodies


def _body(context: RequestContext, kind: type[Body]) -> Body:
    if context.request.method != "POST":
        raise not_allowed("POST")
    context.request.parameters()
    content_type = context.request.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if content_type != JSON:
        accepted = b"Accept: application/json\r\n"
        raise Problem(415, "unsupported_media_type", "the body must be application/json", accepted)
    try:
        return msgspec.json.decode(context.request.body, type=kind)
    except JSON_ERRORS as error:
        raise Problem(400, "bad_request", str(error)) from None


def _as_bytes(values: dict[str, Any]) -> Steps[dict[str, bytes]]:
    """Return the values of a body as bytes."""
    result = {}
    for number, (key, value) in enumerate(values.items()):
        result[key] = to_bytes(value)
        if not number % STEP_ITEMS:
            yield
    return result


def _options(ttl: int | None) -> WriteOptions | None:
    return None if ttl is None else WriteOptions(ttl=ttl)


def _number(query: dict[str, str], name: str, minimum: int = 0) -> int | None:
    text = query.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20 and minimum <= int(text) <= MAX_VERSION):
        raise Problem(400, "bad_request", f"{name} must be a whole number of at least {minimum}")
    return int(text)


def _version(query: dict[str, str], name: str) -> tuple[int | None, str | None]:
    """Return the version that a parameter names, and its store (None: a bare number). Raises Problem."""
    if name not in query:
        return None, None
    parts = split_version(query[name])
    if parts is None:
        text = f"{name} must be a version, or a version and its store, as in 12.5f0c9e3a7b21d468"
        raise Problem(400, "bad_request", text)
    return parts


def _at(context: RequestContext, version: int | None, store_id: str | None) -> int | None:
    """Return the version to read at, which must be one of this store unless it is a bare number. Raises Problem."""
    if version is not None and store_id not in (None, context.executor.store_id):
        raise Problem(410, "snapshot_gone", "the version is of another store than the one that is there now")
    return version


def _committed(context: RequestContext, version: int) -> Response:
    return _json(Committed(context.executor.store_id, version))


def _json(body: msgspec.Struct) -> Response:
    return Response(200, msgspec.json.encode(body), JSON)


ROUTES: dict[bytes, Callable[[RequestContext], Any]] = {
    b"/v2/keys": keys_route,
    b"/v2/get": get_route,
    b"/v2/set": set_route,
    b"/v2/delete": delete_route,
    b"/v2/transaction": transaction_route,
    b"/v2/watch": watch_route,
}
