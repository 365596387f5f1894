"""The keys of the running daemon, for TAB: at most 150 ms, never an error, never any output.

One frame with one scan, bounded by the server to a prefix and a count; one deadline for everything together.
"""

from kv.codecs import light
from kv.connection import Deadline, open_connection
from kv.operations import hello, prefix_end, scan
from kvd.protocol.address import parse_tcp

LIMIT = 500
_BUDGET_S = 0.150


def live_keys(prefix: str, address: str | None, token_file: str | None) -> list[str]:
    """Up to LIMIT keys that begin with ``prefix``; none if the daemon is dead, slow or does not let us."""
    try:
        return _ask(prefix, address, token_file)
    except Exception:  # whatever it is, it must not soil the prompt
        return []


def _ask(prefix: str, address: str | None, token_file: str | None) -> list[str]:
    if address is not None and not _quickly_found(address):
        return []
    question = scan(prefix, prefix_end(prefix), LIMIT, None, True)
    requests = [question.request] if token_file is None else [hello("kv", _token(token_file)).request, question.request]
    codec = light()
    payload = codec.encode(requests)
    deadline = Deadline(_BUDGET_S)
    connection = open_connection(address, deadline)
    try:
        connection.send(len(payload).to_bytes(4, "big") + payload, deadline)
        replies = codec.decode(connection.receive(deadline))
    finally:
        connection.close()
    items, _ = question.read(replies[-1])  # type: ignore[index]
    return [item.key for item in items]


def _quickly_found(address: str) -> bool:
    """Whether connecting asks no name server, which no deadline of ours would bound."""
    tcp = parse_tcp(address)
    return tcp is None or tcp[0] == "localhost" or ":" in tcp[0] or tcp[0].replace(".", "").isdigit()


def _token(token_file: str) -> str:
    with open(token_file, encoding="utf-8") as file:
        return file.read().strip()
