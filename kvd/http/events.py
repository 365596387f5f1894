"""A feed as server-sent events (the HTML standard, 9.2).

        event: change    {"version", "time", "author", "changes": {key: value or null}}      id: version.store
        event: reset     {"version"}    forget everything; all items follow: the reader was too slow or began too late
        event: item      {"key", "version", "value"}
        event: live      {"version"}    everything up to here is sent                          id: version.store

Only change and live have an id. So a reader that is cut off between reset and live returns with an older id, and is
reset again. The id names the store, so a reader that returns to another store is reset, too.
"""

from typing import Any

import msgspec

from kvd.http.models import to_json

# Proxies and browsers close a silent connection; a comment keeps it open.
HEARTBEAT_S = 15.0
HEARTBEAT = b": still here\n\n"


def encoded(event: tuple[Any, ...], store_id: str) -> bytes:
    """Return one event as text."""
    match event:
        case ("change", version, time, author, changes):
            who = None if author is None else author.name
            shown = {key: None if value is None else to_json(value) for key, value in changes.items()}
            return _event(
                "change", {"version": version, "time": time, "author": who, "changes": shown}, _id(version, store_id)
            )
        case ("item", key, value, version):
            return _event("item", {"key": key, "version": version, "value": to_json(value)})
        case (name, version):
            return _event(name, {"version": version}, _id(version, store_id) if name == "live" else "")
    raise AssertionError(event)


def _id(version: int, store_id: str) -> str:
    """Return the text of a position, without making one: each event has it."""
    return f"{version}.{store_id}"


def _event(name: str, data: dict[str, object], id_: str = "") -> bytes:
    line = f"id: {id_}\n".encode() if id_ else b""
    return b"event: %s\n%sdata: %s\n\n" % (name.encode(), line, msgspec.json.encode(data))


def chunk(data: bytes) -> bytes:
    """Return ``data`` as a chunk of the chunked coding."""
    return b"%x\r\n%s\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"
