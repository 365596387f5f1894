"""The author and the time of a commit, as text and in JSON; and the text of a conflict, which names them."""

from kv.cli.escape import show
from kv.cli.times import show_time, time_json
from kvd.protocol import Position

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kv.errors import Conflict
    from kv.results import Author, ConflictEntry


def who_and_when(author: "Author | None", time_us: int | None) -> str:
    """Return the text for a column: ``2026-11-23 10:00:00  uid 0 pid 12 (kv)``."""
    return f"{show_time(time_us)}  {who(author)}"


def who(author: "Author | None") -> str:
    """Return the author as text that is safe to show, because the owner of a process chooses its name."""
    return "author unknown" if author is None else show(str(author))


def author_json(author: "Author | None") -> "dict[str, object] | None":
    """Return the author for programs."""
    return None if author is None else {"uid": author.uid, "pid": author.pid, "name": author.name}


def commit_json(version: int, time_us: int | None, author: "Author | None") -> dict[str, object]:
    """Return version, position (the version with its store), time and author for programs."""
    position = {"position": version.text} if isinstance(version, Position) else {}
    return {"version": version, **position, "time": time_json(time_us), "author": author_json(author)}


def conflict_text(error: "Conflict") -> str:
    """Return one line: which key was not as expected, who changed it, and when."""
    conflicts = error.conflicts
    if not conflicts:
        return error.message
    others = len(conflicts) - 1
    more = f", and {others} more key{'s' if others > 1 else ''}" if others else ""
    return f"{entry_text(conflicts[0])}{more}; nothing was written"


def entry_text(entry: "ConflictEntry") -> str:
    """Return the conflict of one key: what was expected, what is there, its author and time."""
    expected = f"at version {entry.expected}" if entry.expected else "absent"
    actual = f"is at version {entry.found}" if entry.found else "is absent"
    change = "set" if entry.found else "deleted"
    is_known = entry.author is not None or entry.time is not None
    since = f" ({change} by {who(entry.author)}, {show_time(entry.time)})" if is_known else ""
    return f"{entry.key} {actual}, not {expected}{since}"
