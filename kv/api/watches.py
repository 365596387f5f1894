"""Watches: a feed of commits, which resumes where it broke off. The half without I/O.

Changes that have been received and not handed out yet are in a queue, so a feed has two positions:

        ──────┬──────────────────────────┬────────▶ commits
              version                    received
              handed out up to here      received up to here: a feed that broke is requested again from here on

Both name their store. ``received`` moves only with what is complete: a change, or the end of a resynchronisation. The
watch requests a resynchronisation where its position is not one of the daemon's store, and the daemon sends one where
its history does not reach back that far. A bare number may be any store's, so a watch from one begins with that, too.
"""

from __future__ import annotations

from collections import deque

from kv.api.scopes import ProcessBound
from kv.errors import ProtocolError, Stopping
from kv.results import Change, author
from kv.wire import operations
from kv.wire.exchange import Exchange
from kvd.protocol import Position, store_of

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
        self.version = self._received = since
        self._position: type[Position] = Position  # makes positions in the store of the current connection
        self._queue: deque[tuple[Position, Change | None]] = deque()
        self._snapshot: dict[str, bytes | None] | None = None  # what the current resynchronisation has brought so far
        self._snapshot_version = 0
        # Called with each change before ``version`` includes it.
        self.apply: Callable[[Change], None] | None = None

    def opening(self, protocol: ClientProtocol, token: str | None) -> Generator[bytes, bytes, None]:
        """Begin or resume on a new connection: yield bytes to send, or no bytes to be sent what was received.

        Raises KvdError.
        """
        if not protocol.hello_sent:
            yield protocol.hello(token)
        while protocol.store_id is None:
            self.receive(protocol, (yield b""))
        exchange = self._request(protocol)
        protocol.pending.append([exchange])
        yield protocol.encode([exchange])
        while not exchange.done:
            try:
                self.receive(protocol, (yield b""))
            except Stopping:
                if not exchange.done:
                    raise  # else the feed has begun, and its first events came with the goodbye
        exchange.result()

    def receive(self, protocol: ClientProtocol, data: bytes) -> None:
        """Take received bytes. Raises KvdError: ProtocolError, or Stopping after a goodbye."""
        events: list[Any] = []
        protocol.events = events
        protocol.receive_and_dispatch(data)
        self.take(events)
        if protocol.refusal is not None:
            raise protocol.refusal
        if protocol.shutting_down:
            raise Stopping("the daemon is stopping")

    def _request(self, protocol: ClientProtocol) -> Exchange:
        self._snapshot = None
        view = protocol.store_view
        self._position = view.position
        if self._received is None:
            assert view.version is not None  # hello has been answered
            self.version = self._received = view.position(view.version)
        is_known = store_of(self._received) == protocol.store_id
        return Exchange((operations.watch(self._prefix, self._received if is_known else NO_SUCH_VERSION),))

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
            position = self._position(version)
            self._put(position, Change(position, time, author(author_fields), writes))
        elif kind == "reset":
            self._snapshot, self._snapshot_version = {}, fields[0]
        elif kind == "item" and self._snapshot is not None:
            self._snapshot[fields[0]] = fields[1]
        elif kind == "live" and self._snapshot is not None:
            position = self._position(self._snapshot_version)
            change = Change(position, None, None, self._snapshot, resync=True)
            self._snapshot = None
            self._put(position, change)
        elif kind == "live":
            self._put(self._position(fields[0]), None)

    def _put(self, position: Position, change: Change | None) -> None:
        self._queue.append((position, change))
        self._received = position

    @property
    def has_changes(self) -> bool:
        """Whether ``hand_out`` may return a change."""
        return bool(self._queue)

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
        """Where to resume later: every change up to it has been handed out. None before the start, without since.

        A Position once the watch has begun: it names its store, so that a watch since it never skips a change.
        """
        return self._feed.version
