"""The routes of the original, bodies and statuses to the letter, without its faults.

Errors are one line of plain text. Keys are whatever stands behind ``/v1/``, percent-decoded, with any ``/`` in it;
there is no redirect. What looks like a query is refused: the original's client does not encode ``?``, and would hit
another key.
"""

import datetime
from typing import Any

import msgspec

from kvd import __version__
from kvd.http.problems import Problem, not_allowed
from kvd.http.request_context import Call
from kvd.http.requests import decoded
from kvd.http.responses import JSON, TEXT, Response
from kvd.protocol import messages
from kvd.requests import permissions
from kvd.requests.errors import RequestError

PROMETHEUS = b"text/plain; version=0.0.4; charset=utf-8"
_METRICS = {
    "KeysStored": "keys_stored",
    "ValueBytesStored": "value_bytes_stored",
    "GetOps": "get_operations",
    "SetOps": "set_operations",
    "DelOps": "delete_operations",
}
_decode_keys = msgspec.json.Decoder(list[str] | None).decode
_decode_records = msgspec.json.Decoder(list[dict[str, Any] | None] | None).decode


def key_route(call: Call) -> Response:
    """``/v1/{key}``."""
    request = call.request
    if request.query is not None:
        raise Problem(400, "bad_request", "this route takes no query; a ? in a key has to be encoded as %3F")
    key = decoded(request.path[len(b"/v1/") :], "the key")
    match request.verb:
        case "GET":
            value = call.ask(messages.Get(key))
            if value is None:
                raise _not_found()
            return Response(200, value, TEXT)
        case "PUT":
            call.ask(messages.Set({key: request.body}))
            return Response(201)
        case "DELETE":
            return Response(200, _deleted(call, key), TEXT)
    raise not_allowed("GET", "HEAD", "PUT", "DELETE")


def _deleted(call: Call, key: str) -> bytes:
    """The value that a key had, which it has no more: in one step, and no get is counted."""
    try:
        permissions.check(messages.Get(key), call.peer.grant)
    except RequestError as refusal:
        raise Problem(403, refusal.code, refusal.message) from None
    commands = call.commands
    commands.before_others()
    commands.may_run((messages.Delete([key]),))  # what is due has expired then
    head = commands.database.store.find(key)
    call.ask(messages.Delete([key]))
    return b"" if head is None or head.value is None else head.value


def bulk_route(call: Call) -> Response:
    """``/v1/``: all or nothing."""
    if call.request.query is not None:
        raise Problem(400, "bad_request", "this route takes no query")
    match call.request.verb:
        case "GET":
            return _get_all(call)
        case "PUT":
            return _put_all(call)
        case "DELETE":
            if keys := _keys(call):
                call.ask(messages.Delete(list(dict.fromkeys(keys))))
            return Response(200)
    raise not_allowed("GET", "HEAD", "PUT", "DELETE")


def _get_all(call: Call) -> Response:
    keys = _keys(call)
    values = call.ask(messages.GetMany(keys)) if keys else []
    if None in values:
        raise _not_found()
    records = []
    for key, value in zip(keys, values, strict=True):
        try:
            records.append({"Key": key, "Value": value.decode()})
        except UnicodeDecodeError:
            text = f"the value of {key!r} is not text, and JSON has only text; GET /v1/KEY or POST /v2/get gives it"
            raise Problem(422, "not_text", text) from None
    return Response(200, msgspec.json.encode(records), JSON)


def _put_all(call: Call) -> Response:
    try:
        records = _decode_records(_body(call))
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise _not_json() from None
    if not records:
        raise Problem(400, "bad_request", "No records provided")
    entries: dict[str, bytes] = {}
    for record in records:
        fields = {name.lower(): value for name, value in (record or {}).items()}
        key, value = (_text(fields.get(name)) for name in ("key", "value"))
        entries[key] = value.encode()
    if "" in entries:
        raise _empty_key()
    call.ask(messages.Set(entries))
    return Response(201)


def _text(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _not_json()
    return value


def _keys(call: Call) -> list[str]:
    try:
        keys = _decode_keys(_body(call)) or []
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise _not_json() from None
    if "" in keys:
        raise _empty_key()
    return keys


def _body(call: Call) -> bytes:
    if not call.request.body:
        raise Problem(400, "bad_request", "Request body is required")
    return call.request.body


def status_route(call: Call) -> Response:
    """``/status``."""
    if call.request.verb != "GET":
        raise not_allowed("GET", "HEAD")
    call.ask(messages.Ping())
    now = datetime.datetime.now().astimezone().isoformat(timespec="microseconds")
    body = {"status": "ok", "message": "Server initialized", "ts": now, "version": __version__}
    return Response(200, msgspec.json.encode(body), JSON)


def metrics_route(call: Call) -> Response:
    """``/metrics`` as JSON, or for Prometheus if the Accept header asks for that."""
    if call.request.verb != "GET":
        raise not_allowed("GET", "HEAD")
    if _wants_prometheus(call.request.headers.get(b"accept", b"")):
        return prometheus_route(call)
    figures = dict(call.ask(messages.Metrics()))
    return Response(200, msgspec.json.encode({name: figures[ours] for name, ours in _METRICS.items()}), JSON)


def prometheus_route(call: Call) -> Response:
    """``/metrics/prometheus``: the exposition format."""
    if call.request.verb != "GET":
        raise not_allowed("GET", "HEAD")
    call.ask(messages.Metrics())  # whoever may not, may not this way
    try:
        from kvd.telemetry.exposition import exposition  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        text = "this daemon has no metrics for Prometheus: install kvd[prometheus]"
        raise Problem(501, "not_implemented", text) from None
    return Response(200, exposition(call.commands), PROMETHEUS)


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
