"""The OpenAPI 3.1 document of /v2/, built from the types that its bodies are checked against."""

from typing import Any

import msgspec

from kvd import __version__
from kvd.http import models
from kvd.http.problems import not_allowed
from kvd.http.request_context import RequestContext
from kvd.http.responses import JSON, Response

Json = dict[str, Any]
_BODIES = (models.GetBody, models.SetBody, models.DeleteBody, models.TransactionBody)
_ANSWERS = (models.Items, models.Page, models.Committed, models.Deleted, models.ProblemDetails)
_ERRORS = {
    "400": "the request cannot be understood; nothing ran",
    "401": "no token, or a wrong one",
    "403": "no right to these keys, or a page of another origin; nothing ran",
    "405": "the route does not have this method",
    "408": "the request did not arrive completely in time",
    "413": "over a limit; nothing was changed",
    "421": "the Host header does not name this daemon",
    "429": "too many connections or watches of one user",
    "431": "too many headers, or headers that are too long",
    "500": "a fault in the server; it is not known whether the request ran",
    "503": "no memory, no space on the disk, too many connections, or the server is stopping; nothing was changed",
}
_GONE = {"410": "that version has left the history"}
_CONFLICT = {"409": "a compared version has changed, or a key is missing; nothing was written"}
_FAILED = {"412": "a condition does not hold; nothing was changed"}
_MISSING = {"404": "there is no such key"}
_UNSUPPORTED = {"415": "the body must be application/json"}

_KEY = {
    "name": "key",
    "in": "path",
    "required": True,
    "description": "percent-encoded; / may be encoded, too",
    "schema": {"type": "string", "minLength": 1},
}
_POSITION = {
    "type": "string",
    "pattern": r"^[0-9]{1,19}(\.[0-9a-f]{16})?$",
    "description": "a version, or a version and its store, as the id of an event has them: 12.5f0c9e3a7b21d468",
}
_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_ETAG = {"ETag": {"description": "the key's version", "schema": {"type": "string"}}}


def document_route(context: RequestContext) -> Response:
    """``/openapi.json``."""
    if context.request.verb != "GET":
        raise not_allowed("GET", "HEAD")
    return Response(200, msgspec.json.encode(document()), JSON)


def document() -> Json:
    """Return the whole document."""
    _, schemas = msgspec.json.schema_components([*_BODIES, *_ANSWERS], ref_template="#/components/schemas/{name}")
    return {
        "openapi": "3.1.0",
        "info": {"title": "kvd", "version": __version__, "description": "See docs/http.md."},
        "paths": {
            "/v2/keys/{key}": {"parameters": [_KEY], "get": _get(), "head": _get(), "put": _put(), "delete": _delete()},
            "/v2/keys": {"get": _page()},
            "/v2/get": {"post": _post("Read keys at one version", "GetBody", "Items", _GONE)},
            "/v2/set": {"post": _post("Store values in one commit", "SetBody", "Committed", {})},
            "/v2/delete": {"post": _post("Delete keys in one commit", "DeleteBody", "Deleted", _MISSING)},
            "/v2/transaction": {
                "post": _post("Compare versions, then write", "TransactionBody", "Committed", _CONFLICT)
            },
            "/v2/watch": {"get": _watch()},
        },
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _get() -> Json:
    answers = {"200": {"description": "the value", "content": _BYTES, "headers": _ETAG}}
    answers["304"] = {"description": "unchanged"}
    conditions = [_header("If-None-Match"), _header("If-Match")]
    return _operation("Read a key", answers, {**_MISSING, **_GONE, **_FAILED}, [_query("at", _POSITION), *conditions])


def _put() -> Json:
    answers = {
        "201": {"description": "stored; the key was absent before", "headers": _ETAG},
        "204": {"description": "stored; the key had another value before", "headers": _ETAG},
    }
    ttl = {"type": "integer", "minimum": 1, "maximum": 100 * 365_25 * 24 * 36_000}
    parameters = [_query("ttl", ttl), _header("If-None-Match"), _header("If-Match")]
    operation = _operation("Store a key", answers, _FAILED, parameters)
    return {**operation, "requestBody": {"content": _BYTES}}


def _delete() -> Json:
    answers = {"204": {"description": "deleted"}}
    return _operation("Delete a key", answers, {**_MISSING, **_FAILED}, [_header("If-Match")])


def _page() -> Json:
    parameters = [_query(name, {"type": "string"}) for name in ("prefix", "start", "after")]
    parameters += [_query("limit", {"type": "integer", "minimum": 1, "maximum": 65_536}), _query("at", _POSITION)]
    parameters.append(_query("values", {"type": "boolean"}))
    return _operation("List keys in order", {"200": _json("Page")}, _GONE, parameters)


def _post(summary: str, body: str, answer: str, errors: dict[str, str]) -> Json:
    operation = _operation(summary, {"200": _json(answer)}, {**errors, **_UNSUPPORTED}, [])
    return {**operation, "requestBody": {"required": True, "content": {"application/json": {"schema": _ref(body)}}}}


def _watch() -> Json:
    answers = {"200": {"description": "events: change, reset, item, live", "content": {"text/event-stream": {}}}}
    parameters = [_query("prefix", {"type": "string"}), _query("from", _POSITION)]
    return _operation("Watch commits", answers, {}, parameters)


def _operation(summary: str, answers: Json, errors: dict[str, str], parameters: list[Json]) -> Json:
    content = {"application/problem+json": {"schema": _ref("ProblemDetails")}}
    texts = sorted({**_ERRORS, **errors}.items())
    problems = {status: {"description": text, "content": content} for status, text in texts}
    return {"summary": summary, "parameters": parameters, "responses": {**answers, **problems}}


def _json(name: str) -> Json:
    return {"description": "done", "content": {"application/json": {"schema": _ref(name)}}}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _query(name: str, schema: Json) -> Json:
    return {"name": name, "in": "query", "schema": schema}


def _header(name: str) -> Json:
    return {"name": name, "in": "header", "schema": {"type": "string"}}
