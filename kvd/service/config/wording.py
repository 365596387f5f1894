"""How the errors of a configuration are worded."""

import difflib
from collections.abc import Iterable

import msgspec


def suggestion(name: str, names: Iterable[str]) -> str:
    """``; did you mean …?`` to append to an error if one of ``names`` is similar, else an empty text."""
    similar = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {similar[0]}?" if similar else ""


def suggestion_or_all(name: str, names: Iterable[str]) -> str:
    """The similar one of ``names`` to append to an error; all of them if none is similar."""
    names = list(names)
    return suggestion(name, names) or f"; there are {', '.join(names)}"


def explain(error: msgspec.ValidationError) -> str:
    """Msgspec's complaint about a table, in the words of our own checks: ``max_keys: expected int, got str``."""
    text, _, path = str(error).partition(" - at `$")
    for theirs, ours in ((" | null", ""), ("array", "list"), ("object", "table"), ("Object", "table"), ("`", "")):
        text = text.replace(theirs, ours)
    place = path.strip(".`")
    return (f"{place}: " if place else "") + text[:1].lower() + text[1:]
