"""The routes under /v2/."""

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from kvd.engine.feeds import EventSource
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
from kvd.http.request_context import Call
from kvd.http.requests import decoded
from kvd.http.responses import BYTES, JSON, Response
from kvd.protocol import messages
from kvd.protocol.messages import How
from kvd.protocol.ranges import prefix_end

PAGE_KEYS = 1_000
KEY_PREFIX = b"/v2/keys/"
_MAX_VERSION = 2**63 - 1
Body = TypeVar("Body")


# ---------------------------------------------------------------------- one key


def key_route(call: Call) -> Response:
    """``/v2/keys/{key}``."""
    key = decoded(call.request.path[len(KEY_PREFIX) :], "the key")
    if not key:
        raise Problem(400, "bad_request", "a key has at least one byte")
    match call.request.verb:
        case "GET":
            return _get(call, key)
        case "PUT":
            return _put(call, key)
        case "DELETE":
            return _delete(call, key)
    raise not_allowed("GET", "HEAD", "PUT", "DELETE")


def _get(call: Call, key: str) -> Response:
    at = _number(call.request.parameters("at"), "at")
    ((value, version, *_),) = call.ask(messages.Fetch([key], at))
    store_id = call.commands.database.store_id
    tag = conditions.tag(version, store_id)
    if not conditions.holds_if_match(call.request, version, store_id):
        raise _failed(f"the key is at version {version}" if version else "there is no such key")
    if value is None:
        raise Problem(404, "not_found", "no such key")
    if not conditions.holds_if_none_match(call.request, version, store_id):
        return Response(304, headers=tag)
    return Response(200, value, BYTES, tag)


def _put(call: Call, key: str) -> Response:
    request = call.request
    how = _how(_number(request.parameters("ttl"), "ttl", least=1))
    before = _reads_for(call, key)
    existed = before != 0
    if conditions.are_given(request):
        version = _commit_if(call, messages.Commit({key: request.body}, {key: before}, how=how))
    else:
        version = call.ask(messages.Set({key: request.body}, how))
    return Response(204 if existed else 201, headers=conditions.tag(version, call.commands.database.store_id))


def _delete(call: Call, key: str) -> Response:
    call.request.parameters()
    if not conditions.are_given(call.request):
        call.ask(messages.Delete([key]))
        return Response(204)
    before = _reads_for(call, key)
    _commit_if(call, messages.Commit({key: None}, {key: before}))  # raises for who may not
    if not before:
        raise Problem(404, "not_found", "no such key")
    return Response(204)


def _reads_for(call: Call, key: str) -> int:
    """The version that a key is at (0: absent), if the request's conditions hold for it; raises Problem if not.

    Who has no right to read learns nothing by it: the commit that follows says that it read the key, and is refused.
    """
    commands = call.commands
    commands.before_others()
    commands.may_run((messages.Get(key),))  # what is due has expired then
    head = commands.database.store.find(key)
    version = 0 if head is None or head.value is None else head.version
    if not conditions.are_given(call.request):
        return version
    store_id = commands.database.store_id
    holds = conditions.holds_if_match(call.request, version, store_id)
    if not holds or not conditions.holds_if_none_match(call.request, version, store_id):
        call.ask(messages.Fetch([key]))  # raises for who may not read; and the answer shows what has to be durable
        raise _failed(f"the key is at version {version}" if version else "there is no such key")
    return version


def _commit_if(call: Call, commit: messages.Commit) -> int:
    try:
        version: int = call.ask(commit)
    except Problem as problem:
        if problem.code == "conflict":
            raise _failed(problem.detail) from None
        raise
    return version


def _failed(detail: str) -> Problem:
    return Problem(412, "conflict", f"a condition does not hold: {detail}; nothing was changed")


# ---------------------------------------------------------------------- many keys


def keys_route(call: Call) -> Response:
    """``/v2/keys``: a page of keys in order."""
    if call.request.verb != "GET":
        raise not_allowed("GET", "HEAD")
    given = call.request.parameters("prefix", "limit", "start", "after", "at", "values")
    prefix = given.get("prefix", "")
    start = max(prefix, given.get("start", ""), given["after"] + "\0" if "after" in given else "", key=str.encode)
    limit = _number(given, "limit", least=1)
    if given.get("values", "false") not in ("true", "false"):
        raise Problem(400, "bad_request", "values is true or false")
    with_values = given.get("values") == "true"
    at = _number(given, "at")
    commands = call.commands
    limit = min(PAGE_KEYS, commands.limits.max_keys_per_request) if limit is None else limit
    found = call.ask(messages.Scan(start, prefix_end(prefix), limit, at=at, keys_only=not with_values))
    database = commands.database
    shown = [
        PageItem(each.key, each.version, to_json(each.value) if with_values else msgspec.UNSET) for each in found.items
    ]
    return _json(Page(database.store_id, database.store.version if at is None else at, shown, found.next))


def get_route(call: Call) -> Response:
    """``POST /v2/get``."""
    body = _body(call, GetBody)
    found = call.ask(messages.Fetch(body.keys, body.at)) if body.keys else []
    database = call.commands.database
    items = [
        Item(key, version, None if value is None else to_json(value))
        for key, (value, version, *_) in zip(body.keys, found, strict=True)
    ]
    return _json(Items(database.store_id, database.store.version if body.at is None else body.at, items))


def set_route(call: Call) -> Response:
    """``POST /v2/set``."""
    body = _body(call, SetBody)
    if not body.entries:
        raise Problem(400, "bad_request", "entries: there are none")
    entries = {key: to_bytes(value) for key, value in body.entries.items()}
    return _committed(call, call.ask(messages.Set(entries, _how(body.ttl))))


def delete_route(call: Call) -> Response:
    """``POST /v2/delete``."""
    body = _body(call, DeleteBody)
    if not body.keys:
        raise Problem(400, "bad_request", "keys: there are none")
    keys = list(dict.fromkeys(body.keys))
    version, count = call.ask(messages.Delete(keys, body.missing_ok))
    return _json(Deleted(call.commands.database.store_id, version, count))


def transaction_route(call: Call) -> Response:
    """``POST /v2/transaction``."""
    body = _body(call, TransactionBody)
    if both := body.set.keys() & set(body.delete):
        raise Problem(400, "bad_request", f"{min(both)!r} is to be set and deleted")
    store_id = call.commands.database.store_id
    if body.store is not None and body.store != store_id:
        raise Problem(409, "conflict", "the versions are of another store; nothing was changed", conflicts=[])
    writes: dict[str, bytes | None] = {key: to_bytes(value) for key, value in body.set.items()}
    writes |= dict.fromkeys(body.delete)
    return _committed(call, call.ask(messages.Commit(writes, body.compare, how=_how(body.ttl))))


# ---------------------------------------------------------------------- the feed


def watch_route(call: Call) -> EventSource:
    """``/v2/watch``: server-sent events, until somebody closes."""
    if call.request.method != "GET":
        raise not_allowed("GET")
    given = call.request.parameters("prefix", "from")
    last = call.request.headers.get(b"last-event-id")
    if last:  # a browser comes back, and says up to where it has been told
        given["from"] = last.decode("latin-1")
    call.ask(messages.Watch(given.get("prefix", ""), _number(given, "from")))
    feed = call.peer.feed
    assert feed is not None
    return feed


# ---------------------------------------------------------------------- bodies


def _body(call: Call, kind: type[Body]) -> Body:
    if call.request.method != "POST":
        raise not_allowed("POST")
    call.request.parameters()
    content_type = call.request.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if content_type != JSON:
        accepted = b"Accept: application/json\r\n"
        raise Problem(415, "unsupported_media_type", "the body has to be application/json", accepted)
    try:
        return msgspec.json.decode(call.request.body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(400, "bad_request", str(error)) from None


def _how(ttl: int | None) -> How | None:
    return None if ttl is None else How(ttl=ttl)


def _number(given: dict[str, str], name: str, least: int = 0) -> int | None:
    text = given.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= _MAX_VERSION):
        raise Problem(400, "bad_request", f"{name} is a whole number from {least} on")
    return int(text)


def _committed(call: Call, version: int) -> Response:
    return _json(Committed(call.commands.database.store_id, version))


def _json(body: msgspec.Struct) -> Response:
    return Response(200, msgspec.json.encode(body), JSON)


ROUTES: dict[bytes, Callable[[Call], Any]] = {
    b"/v2/keys": keys_route,
    b"/v2/get": get_route,
    b"/v2/set": set_route,
    b"/v2/delete": delete_route,
    b"/v2/transaction": transaction_route,
    b"/v2/watch": watch_route,
}
