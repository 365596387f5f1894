"""Watches: a feed of commits, which resumes where it broke off. The half without I/O.

A feed has one position, ``version``: every change up to it has been handed out. Changes that have come and are not
handed out yet are in a queue. The watch reads from its connection when the queue is empty. So a feed that broke is
requested again from ``version`` on. The daemon resynchronises where it cannot resume, as does a daemon with another
store, whose versions mean something else.
"""

from __future__ import annotations

from collections import deque

from kv.api.scopes import ProcessBound
from kv.errors import ProtocolError, Unavailable
from kv.results import Change, author
from kv.wire import operations
from kv.wire.exchange import Exchange

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    from kv.settings import ClientSettings
    from kv.wire.protocol import ClientProtocol

# No store has this version: a feed from there begins with a resynchronisation.
NO_SUCH_VERSION = 1 << 62
FIRST_PAUSE_S = 0.02
MAX_PAUSE_S = 0.5


class Feed:
    """The events that a watch has received, and what it has handed out of them. No I/O."""

    def __init__(self, prefix: str, since: int | None) -> None:
        self._prefix = prefix
        self.version = since
        self._store_id: str | None = None
        self._queue: deque[tuple[int, Change | None]] = deque()
        self._snapshot: dict[str, bytes | None] | None = None  # what the current resynchronisation has brought so far
        self._snapshot_version = 0
        # Called with each change before ``version`` includes it.
        self.apply: Callable[[Change], None] | None = None

    def opening(self, protocol: ClientProtocol, token: str | None) -> Generator[bytes, bytes, None]:
        """Begin or resume on a new connection: yield bytes to send, or no bytes to be sent what was received.

        Raises KvdError.
        """
        yield protocol.hello(token)
        while protocol.store_id is None:
            self.receive(protocol, (yield b""))
        exchange = self._request(protocol)
        protocol.pending.append([exchange])
        yield protocol.encode([exchange])
        while not exchange.done:
            self.receive(protocol, (yield b""))
        exchange.result()

    def receive(self, protocol: ClientProtocol, data: bytes) -> None:
        """Take received bytes. Raises KvdError: ProtocolError, or Unavailable after a goodbye."""
        events: list[Any] = []
        protocol.events = events
        protocol.receive_and_dispatch(data)
        self.take(events)
        if protocol.refusal is not None:
            raise protocol.refusal
        if protocol.shutting_down:
            raise Unavailable("the daemon is stopping")

    def _request(self, protocol: ClientProtocol) -> Exchange:
        self._snapshot = None
        is_same_store = self._store_id in (None, protocol.store_id)
        self._store_id = protocol.store_id
        if self.version is None:
            self.version = protocol.store_view.version
        return Exchange((operations.watch(self._prefix, self.version if is_same_store else NO_SUCH_VERSION),))

    def take(self, events: list[Any]) -> None:
        """Take events in their order. Raises ProtocolError."""
        try:
            for event in events:
                self._take(*event)
        except (ValueError, TypeError, IndexError, AttributeError) as error:
            raise ProtocolError(f"the daemon's event has an unexpected form: {error}", "bad_reply") from error

    def _take(self, kind: str, *fields: Any) -> None:  # noqa: ANN401
        if kind == "change":
            version, time, author_fields, writes = fields
            self._queue.append((version, Change(version, time, author(author_fields), writes)))
        elif kind == "reset":
            self._snapshot, self._snapshot_version = {}, fields[0]
        elif kind == "item" and self._snapshot is not None:
            self._snapshot[fields[0]] = fields[1]
        elif kind == "live" and self._snapshot is not None:
            change = Change(self._snapshot_version, None, None, self._snapshot, resync=True)
            self._snapshot = None
            self._queue.append((self._snapshot_version, change))
        elif kind == "live":
            self._queue.append((fields[0], None))

    def hand_out(self) -> Change | None:
        """Return the next change, if one has come."""
        while self._queue:
            version, change = self._queue.popleft()
            if change is not None and self.apply is not None:
                self.apply(change)
            self.version = version
            if change is not None:
                return change
        return None


class WatchState(ProcessBound):
    """What both kinds of watches have."""

    _what = "a watch"

    def __init__(
        self,
        settings: ClientSettings,
        prefix: str = "",
        since: int | None = None,
        apply: Callable[[Change], None] | None = None,
    ) -> None:
        super().__init__()
        self._settings = settings
        self._feed = Feed(prefix, since)
        self._feed.apply = apply
        self._closed = False

    @property
    def version(self) -> int | None:
        """Where to resume later: every change up to it has been handed out. None before the start, without since."""
        return self._feed.version
