"""The anomalies of the literature, each as a schedule that would show it. The tests check that none can happen.

The schedules are in `anomalies/`, written for people. Each session has its own connection. The text after a command is
the expected answer:

    setup: k=v …      the initial keys, in one commit            S: begin           begin a transaction in session S
    S: get k          read k in the transaction                  S: put k=v         write k in the transaction
    S: fresh k        the same, but ask the daemon again         S: scan prefix     read a range in the transaction
    S: commit         ok, or conflict and the key                S: abort           give up the transaction
    S: set k=v        write k in a commit of its own             S: del k           delete k in a commit of its own
    S: read k …       read the newest values                     S: history k       the values of k, newest first
"""

import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.harness.raw_peer import RawPeer
    from tests.histories.conftest import HistoryDaemon

SCRIPTS = sorted(pathlib.Path(__file__).parent.joinpath("anomalies").glob("*.txt"))
NAMES = {
    "dirty_write", "dirty_read", "aborted_read", "intermediate_read", "fuzzy_read", "phantom", "lost_update",
    "read_skew", "write_skew", "long_fork", "stale_read",
}  # fmt: skip


class Session:
    """One connection with its current transaction. It sends raw frames, as any client could."""

    def __init__(self, connection: "RawPeer") -> None:
        self._connection = connection
        self._snapshot = 0
        self._reads: dict[str, int] = {}
        self._seen: dict[str, bytes | None] = {}
        self._ranges: list[list[str]] = []
        self._writes: dict[str, bytes] = {}

    def _ask(self, *requests: object) -> Any:  # noqa: ANN401 - whatever the daemon replies
        """Return the replies to one frame, or the reply itself if the frame has one request."""
        replies = self._connection.ask(*requests)
        return replies[0] if len(requests) == 1 else replies

    def begin(self) -> str:
        self._snapshot = self._ask(["begin"])
        self._reads, self._seen, self._ranges, self._writes = {}, {}, [], {}
        return ""

    def get(self, key: str) -> str:
        if key not in self._writes and key not in self._seen:
            self.fresh(key)
        return shown(key, self._writes.get(key, self._seen.get(key)))

    def fresh(self, key: str) -> str:
        [[value, version, *_]] = self._ask(["fetch", [key], self._snapshot])
        self._reads[key], self._seen[key] = version, value
        return shown(key, value)

    def put(self, pair: str) -> str:
        key, _, value = pair.partition("=")
        self._writes[key] = value.encode()
        return ""

    def scan(self, prefix: str) -> str:
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        self._ranges.append([prefix, end])
        items, _ = self._ask(["scan", prefix, end, 100, self._snapshot])
        return " ".join(shown(key, value) for key, value, _ in items)

    def commit(self) -> str:
        if not self._writes:  # a read-only transaction sees one instant anyway, and never conflicts
            return "ok" if self._ask(["end", self._snapshot]) else "not held"
        reply, _ = self._ask(
            ["commit", self._writes, self._reads, self._ranges, self._snapshot], ["end", self._snapshot]
        )
        if isinstance(reply, dict):
            return f"{reply['error']} " + " ".join(conflict[0] for conflict in reply["conflicts"])
        return "ok"

    def abort(self) -> str:
        assert self._ask(["end", self._snapshot]) is True
        return ""

    def set(self, *pairs: str) -> str:
        entries = dict(pair.split("=") for pair in pairs)
        self._ask(["set", {key: value.encode() for key, value in entries.items()}])
        return ""

    def delete(self, key: str) -> str:
        self._ask(["delete", [key]])
        return ""

    def read(self, *keys: str) -> str:
        return " ".join(map(shown, keys, self._ask(["get_many", list(keys)])))

    def history(self, key: str) -> str:
        return " ".join(value.decode() for _, value, _, _ in self._ask(["history", key, 10]))


def shown(key: str, value: Any) -> str:  # noqa: ANN401 - bytes or None
    return f"{key}={value.decode()}" if value is not None else f"{key} absent"


def steps(script: pathlib.Path) -> Iterator[tuple[str, str, list[str], str]]:
    """Yield session, command, operands, and the expected answer of each step."""
    for line in script.read_text().splitlines():
        if line.startswith("    "):
            session, _, rest = line.strip().partition(": ")
            text, _, expected = rest.partition("  ")
            command, *operands = text.split() if session != "setup" else ["set", *text.split()]
            yield session, {"del": "delete"}.get(command, command), operands, expected.strip()


def test_every_anomaly_has_a_schedule() -> None:
    assert {script.stem for script in SCRIPTS} == NAMES


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_anomaly_cannot_happen(daemon: "HistoryDaemon", script: pathlib.Path) -> None:
    sessions: dict[str, Session] = {}
    expectations = 0
    for name, command, operands, expected in steps(script):
        if name not in sessions:
            sessions[name] = Session(daemon.connect())
        answer = getattr(sessions[name], command)(*operands)
        assert answer == expected, f"{name}: {command} {' '.join(operands)}"
        expectations += bool(expected)
    assert expectations >= 3, "a schedule without expectations proves nothing"
