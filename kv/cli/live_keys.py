"""Keys and commits of the running daemon, for TAB: within a second or not at all, never an error, never any output.

One frame with one request, whose reply the daemon bounds. One deadline for all of it together: to connect, to send and
to receive. A healthy daemon needs a few milliseconds; the second is for a busy machine.
"""

from kv.blocking.stream import Deadline, open_stream
from kv.wire.codecs import light
from kv.wire.operations import hello, newest_commits, scan
from kvd.protocol import frame
from kvd.protocol.address import parse_tcp
from kvd.protocol.ranges import prefix_end

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    from kv.results import Commit
    from kv.wire.operations import Operation

    T = TypeVar("T")

LIMIT = 500
BUDGET_S = 1.0


def live_keys(prefix: str, address: str | None, token_file: str | None) -> list[str]:
    """Up to LIMIT keys that begin with ``prefix``; none if the daemon is dead, slow or refuses."""
    page = _ask(scan(prefix, prefix_end(prefix), LIMIT, None, True), address, token_file)
    return [] if page is None else [item.key for item in page[0]]


def live_commits(count: int, address: str | None, token_file: str | None) -> "list[Commit]":
    """The newest ``count`` commits, the newest first; none if the daemon is dead, slow or refuses."""
    return (_ask(newest_commits(None, count), address, token_file) or [])[::-1]


def _ask(operation: "Operation[T]", address: str | None, token_file: str | None) -> "T | None":
    try:
        return _answer(operation, address, token_file)
    except Exception:  # no error may reach the prompt
        return None


def _answer(operation: "Operation[T]", address: str | None, token_file: str | None) -> "T | None":
    if address is not None and not _quickly_found(address):
        return None
    greeting = [] if token_file is None else [hello("kv", _token(token_file)).request]
    codec = light()
    deadline = Deadline(BUDGET_S)
    stream = open_stream(address, deadline)
    try:
        stream.send(frame(codec.encode([*greeting, operation.request])), deadline)
        replies = codec.decode(stream.receive_frame(deadline))
    finally:
        stream.close()
    return operation.read(replies[-1])  # type: ignore[index]


def _quickly_found(address: str) -> bool:
    """Whether connecting needs no name server, whose answer no deadline of ours bounds."""
    tcp = parse_tcp(address)
    return tcp is None or tcp[0] == "localhost" or ":" in tcp[0] or tcp[0].replace(".", "").isdigit()


def _token(token_file: str) -> str:
    with open(token_file, encoding="utf-8") as file:
        return file.read().strip()
