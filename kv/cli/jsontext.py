"""How values look in JSON: text as a string, anything else as ``{"base64": ...}``. Imported only for ``--json``."""

import base64
import json

from kv.cli.escape import show


def value_json(value: bytes) -> str | dict[str, str]:
    """Return ``value`` as JSON can carry it."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode("ascii")}


def dump(thing: object) -> str:
    """Return ``thing`` as one line of JSON that is readable and safe to print."""
    text = json.dumps(thing, ensure_ascii=False)
    return text if text.isprintable() else "".join(map(_escape, text))


def _escape(character: str) -> str:
    # Only strings hold such characters: outside of them JSON is ASCII.
    return character if show(character) == character else json.dumps(character)[1:-1]
