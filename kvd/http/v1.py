"""The routes of the original service: the same bodies and statuses, without its faults.

Errors are one line of plain text. A key is everything after ``/v1/``, percent-decoded, including any ``/``; there is
no redirect. A query is refused: the original's client does not encode ``?``, and would reach another key.
"""

import datetime
from typing import Annotated, Any

import msgspec

from kvd import __version__
from kvd.http.problems import Problem, not_allowed, problem_of
from kvd.http.request_context import RequestContext
from kvd.http.requests import decoded
from kvd.http.responses import JSON, JSON_ERRORS, TEXT, BoundedJson, Response
from kvd.protocol import messages
from kvd.requests import permissions
from kvd.requests.errors import RequestError
from kvd.requests.turns import Steps
from kvd.telemetry.exposition import CONTENT_TYPE

_METRICS = {
    "KeysStored": "keys_stored",
    "ValueBytesStored": "value_bytes_stored",
    "GetOps": "get_operations",
    "SetOps": "set_operations",
    "DelOps": "delete_operations",
}
# How many items of a body are looked at in one step.
STEP_ITEMS = 256
# A larger collection is refused before it is built.
_Many = msgspec.Meta(max_length=messages.MAX_KEYS)
_decode_keys = msgspec.json.Decoder(Annotated[list[str], _Many] | None).decode
_decode_records = msgspec.json.Decoder(Annotated[list[dict[str, Any] | None], _Many] | None).decode


def key_route(context: RequestContext) -> Steps[Response]:
    """``/v1/{key}``."""
    request = context.request
    if request.query is not None:
        raise Problem(400, "bad_request", "this route takes no query; encode a ? in a key as %3F")
    key = decoded(request.path[len(b"/v1/") :], "the key")
    match request.verb:
        case "GET":
            value = yield from context.ask(messages.Get(key))
            if value is None:
                raise _not_found()
            return Response(200, value, TEXT)
        case "PUT":
            yield from context.ask(messages.Set({key: request.body}))
            return Response(201)
        case "DELETE":
            return Response(200, (yield from _deleted(context, key)), TEXT)
    raise not_allowed("GET", "HEAD", "PUT", "DELETE")


def _deleted(context: RequestContext, key: str) -> Steps[bytes]:
    """Delete a key and return its old value, atomically and without counting a read."""
    try:
        permissions.check(messages.Get(key), context.peer)
    except RequestError as error:
        raise Problem(403, error.code, error.message) from None
    value, _ = context.executor.peek(key)
    yield from context.ask(messages.Delete([key]))
    return b"" if value is None else value


def bulk_route(context: RequestContext) -> Steps[Response]:
    """``/v1/``: all or nothing."""
    if context.request.query is not None:
        raise Problem(400, "bad_request", "this route takes no query")
    match context.request.verb:
        case "GET":
            return (yield from _get_all(context))
        case "PUT":
            return (yield from _put_all(context))
        case "DELETE":
            if keys := _keys(context):
                yield from context.ask(messages.Delete(list(dict.fromkeys(keys))))
            return Response(200)
    raise not_allowed("GET", "HEAD", "PUT", "DELETE")


def _get_all(context: RequestContext) -> Steps[Response]:
    keys = _keys(context)
    values = (yield from context.ask(messages.GetMany(keys))) if keys else []
    if None in values:
        raise _not_found()
    answer = BoundedJson(context.executor.limits.max_reply_bytes)
    records = []
    for number, (key, value) in enumerate(zip(keys, values, strict=True)):
        if not number % STEP_ITEMS:
            yield
        try:
            records.append(answer.encoded({"Key": key, "Value": value.decode()}))
        except UnicodeDecodeError:
            text = f"the value of {key!r} is not text, and JSON has only text; GET /v1/KEY or POST /v2/get returns it"
            raise Problem(422, "not_text", text) from None
    return Response(200, msgspec.json.encode(records), JSON)


def _put_all(context: RequestContext) -> Steps[Response]:
    try:
        records = _decode_records(_body(context))
    except JSON_ERRORS:
        raise _not_json() from None
    if not records:
        raise Problem(400, "bad_request", "No records provided")
    entries: dict[str, bytes] = {}
    for number, record in enumerate(records):
        if not number % STEP_ITEMS:
            yield
        fields = {name.lower(): value for name, value in (record or {}).items()}
        key, value = (_text(fields.get(name)) for name in ("key", "value"))
        entries[key] = value.encode()
    if "" in entries:
        raise _empty_key()
    yield from context.ask(messages.Set(entries))
    return Response(201)


def _text(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _not_json()
    return value


def _keys(context: RequestContext) -> list[str]:
    try:
        keys = _decode_keys(_body(context)) or []
    except JSON_ERRORS:
        raise _not_json() from None
    if "" in keys:
        raise _empty_key()
    return keys


def _body(context: RequestContext) -> bytes:
    if not context.request.body:
        raise Problem(400, "bad_request", "Request body is required")
    return context.request.body


def status_route(context: RequestContext) -> Steps[Response]:
    """``/status``."""
    if context.request.verb != "GET":
        raise not_allowed("GET", "HEAD")
    yield from context.ask(messages.Ping())
    now = datetime.datetime.now().astimezone().isoformat(timespec="microseconds")
    body = {"status": "ok", "message": "Server initialized", "ts": now, "version": __version__}
    return Response(200, msgspec.json.encode(body), JSON)


def metrics_route(context: RequestContext) -> Steps[Response]:
    """``/metrics`` as JSON, or for Prometheus if the Accept header asks for that."""
    if context.request.verb != "GET":
        raise not_allowed("GET", "HEAD")
    if _wants_prometheus(context.request.headers.get(b"accept", b"")):
        return (yield from prometheus_route(context))
    figures = dict((yield from context.ask(messages.Metrics())))
    return Response(200, msgspec.json.encode({name: figures[ours] for name, ours in _METRICS.items()}), JSON)


def prometheus_route(context: RequestContext) -> Steps[Response]:
    """``/metrics/prometheus``: the exposition format."""
    if context.request.verb != "GET":
        raise not_allowed("GET", "HEAD")
    text = yield from context.try_ask(messages.Exposition())
    if type(text) is dict and text["error"] == "bad_request":
        raise Problem(501, "not_implemented", "this daemon has no metrics for Prometheus: install kvd[prometheus]")
    if type(text) is dict:
        raise problem_of(text)
    return Response(200, text.encode(), CONTENT_TYPE.encode())


def _wants_prometheus(accept: bytes) -> bool:
    accept = accept.lower()
    return b"application/json" not in accept and (
        b"application/openmetrics-text" in accept or b"text/plain" in accept or b"version=0.0.4" in accept
    )


def _not_found() -> Problem:
    return Problem(404, "not_found", "key not found")


def _not_json() -> Problem:
    return Problem(400, "bad_request", "Invalid JSON format")


def _empty_key() -> Problem:
    return Problem(400, "bad_request", "empty key not allowed")
