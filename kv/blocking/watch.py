"""Watches: a feed of commits on a connection of its own, begun again by itself where it ended.

A feed has one position, ``version``: all up to there has been handed out. What has come and was not handed out yet is
in a queue, and the connection is looked at again when that is empty; so a feed that broke is asked for again behind
``version``. The daemon resynchronises where it cannot go on from there, and so does a daemon with another store: its
versions mean something else.
"""

from __future__ import annotations

from collections import deque

from kv.api.methods import Blocking
from kv.api.scopes import ClientScope
from kv.blocking.stream import Deadline, open_connection
from kv.errors import ConnectionLost, KvdError, ProtocolError, Unavailable
from kv.results import Change, author
from kv.wire import operations
from kv.wire.exchange import Exchange, StoreView
from kv.wire.protocol import ClientProtocol, settle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import TracebackType
    from typing import Any, Self

    from kv.blocking.client import Client
    from kv.blocking.stream import Connection
    from kv.wire.protocol import Frame

# A version that no store has: a feed from there begins with a resynchronisation.
ELSEWHERE = 1 << 62
FIRST_PAUSE_S = 0.02
MAX_PAUSE_S = 0.5


class Feed:
    """What a watch has been told, and what of it was handed out. No I/O."""

    def __init__(self, prefix: str, since: int | None) -> None:
        self._prefix = prefix
        self.version = since
        self._store_id: str | None = None
        self._queue: deque[tuple[int, Change | None]] = deque()
        self._snapshot: dict[str, bytes | None] | None = None  # what a resynchronisation has brought so far
        self._snapshot_version = 0
        # Called with each change before ``version`` says that it has been handed out.
        self.apply: Callable[[Change], None] | None = None

    def opening(self, channel: ClientProtocol, token: str | None) -> Generator[bytes, bytes, None]:
        """Begin, or go on, on a new connection: yields what to send, or nothing where something is to be received.

        Raises KvdError.
        """
        yield channel.hello(token)
        while channel.store_id is None:
            self.receive(channel, (yield b""))
        asked = self._request(channel)
        channel.waiting.append([asked])
        yield channel.encode([asked])
        while not asked.done:
            self.receive(channel, (yield b""))
        asked.result()

    def receive(self, channel: ClientProtocol, data: bytes) -> None:
        """Take what came. Raises KvdError: ProtocolError, or Unavailable after a goodbye."""
        events: list[Any] = []
        channel.events = events
        answered: list[tuple[Frame, Any]] = []
        channel.receive(data, answered)
        for frame, reply in answered:
            settle(frame, reply)
        self.take(events)
        if channel.refusal is not None:
            raise channel.refusal
        if channel.finished:
            raise Unavailable("the daemon is stopping")

    def _request(self, channel: ClientProtocol) -> Exchange:
        self._snapshot = None
        known = self._store_id in (None, channel.store_id)
        self._store_id = channel.store_id
        if self.version is None:
            self.version = channel.knowledge.version
        return Exchange((operations.watch(self._prefix, self.version if known else ELSEWHERE),))

    def take(self, events: list[Any]) -> None:
        """Events as they came. Raises ProtocolError."""
        try:
            for event in events:
                self._take(*event)
        except (ValueError, TypeError, IndexError, AttributeError) as error:
            raise ProtocolError(f"the daemon's event has an unexpected form: {error}", "bad_reply") from error

    def _take(self, kind: str, *told: Any) -> None:  # noqa: ANN401
        if kind == "change":
            version, time, who, writes = told
            self._queue.append((version, Change(version, time, author(who), writes)))
        elif kind == "reset":
            self._snapshot, self._snapshot_version = {}, told[0]
        elif kind == "item" and self._snapshot is not None:
            self._snapshot[told[0]] = told[1]
        elif kind == "live" and self._snapshot is not None:
            change = Change(self._snapshot_version, None, None, self._snapshot, resync=True)
            self._snapshot = None
            self._queue.append((self._snapshot_version, change))
        elif kind == "live":
            self._queue.append((told[0], None))

    def hand_out(self) -> Change | None:
        """The next change, if one has come."""
        while self._queue:
            version, change = self._queue.popleft()
            if change is not None and self.apply is not None:
                self.apply(change)
            self.version = version
            if change is not None:
                return change
        return None


class WatchState(ClientScope):
    """What both kinds of watches have."""

    _what = "a watch"

    def __init__(
        self,
        client: Any,  # noqa: ANN401
        prefix: str,
        since: int | None,
        apply: Callable[[Change], None] | None = None,
    ) -> None:
        super().__init__(client)
        self._feed = Feed(prefix, since)
        self._feed.apply = apply
        self._closed = False
        self._patience: Deadline | None = None  # until when a daemon that went away may come back, whoever waits

    @property
    def version(self) -> int | None:
        """Where to go on later: all up to this version has been handed out. None before it has begun without since."""
        return self._feed.version


class Watch(WatchState, Blocking):
    """Iterate over it for changes, as they come; ``wait`` for one with a time-out.

    Reconnects by itself. Raises Unavailable if there is no daemon for as long as the client's timeout.
    """

    def __init__(
        self,
        client: Client,
        prefix: str = "",
        since: int | None = None,
        apply: Callable[[Change], None] | None = None,
    ) -> None:
        super().__init__(client, prefix, since, apply)
        self._connection: Connection | None = None
        self._channel: ClientProtocol | None = None
        self._torn = False
        self._open(Deadline(client._timeout))

    def wait(self, timeout: float | None = None) -> Change | None:
        """The next change; None if there is none within ``timeout`` seconds (None: wait for ever), or it was closed."""
        self._check_process()
        deadline = Deadline(timeout)
        while (change := self._feed.hand_out()) is None and not self._closed:
            try:
                self._listen(deadline)
            except TimeoutError:
                return None
        return change

    def close(self) -> None:
        """End the watch. Whoever waits for it, in another thread, is told that there is nothing more."""
        self._closed = True
        connection, self._connection = self._connection, None
        if connection is not None:
            if not self._forked:
                connection.hang_up()
            connection.close()

    abandon = close

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Change:
        change = self.wait()
        if change is None:
            raise StopIteration
        return change

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------ the connection

    def _listen(self, deadline: Deadline) -> None:
        """Take what comes, or connect again if the connection has ended. Raises TimeoutError at ``deadline``."""
        try:
            self._receive(deadline)
        except TimeoutError:
            raise
        except (OSError, EOFError, Unavailable):
            if not self._closed:
                self._reopen(deadline)

    def _receive(self, deadline: Deadline) -> None:
        connection = self._connection  # another thread may close the watch meanwhile
        if connection is None or self._channel is None or self._torn:
            raise EOFError
        connection.wait_for_data(deadline)
        self._torn = True  # until what has come is where it belongs: an interrupt in between costs the connection
        self._feed.receive(self._channel, connection.take())
        self._torn = False

    def _reopen(self, deadline: Deadline) -> None:
        """Connect again, for as long as the client's timeout. Raises TimeoutError at ``deadline``."""
        from time import sleep

        patience = self._patience = self._patience or Deadline(self._client._timeout)
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                # Not until ``patience`` is over: who waits again after that may find a daemon that is back.
                self._open(Deadline(self._client._timeout))
            except KvdError as error:
                if not error.retryable or over(patience):
                    raise
            else:
                self._patience = None
                return
            left_s = deadline.left()
            sleep(pause_s if left_s is None else min(pause_s, left_s))
            pause_s = min(2 * pause_s, MAX_PAUSE_S)

    def _open(self, deadline: Deadline) -> None:
        """Connect, and ask for the feed. Raises KvdError."""
        if self._connection is not None:
            self._connection.close()
        self._torn = True  # until the feed has begun: else whoever waits again would listen to nothing
        connection = self._connection = open_connection(self._client._address, deadline, self._client._tls)
        channel = self._channel = ClientProtocol(self._client._codec, StoreView())
        begin_feed(self._feed, connection, channel, self._client._token_for(connection.address), deadline)
        self._torn = False


def begin_feed(
    feed: Feed, connection: Connection, channel: ClientProtocol, token: str | None, deadline: Deadline
) -> None:
    """Ask for a feed on a new connection. Raises KvdError."""
    opening = feed.opening(channel, token)
    try:
        sent = next(opening)
        while True:
            if sent:
                connection.send(sent, deadline)
                sent = next(opening)
            else:
                connection.wait_for_data(deadline)
                sent = opening.send(connection.take())
    except StopIteration:
        return
    except TimeoutError:
        raise Unavailable(f"no answer from {connection.address} in time", [connection.address]) from None
    except (OSError, EOFError) as error:
        raise ConnectionLost(f"{connection.address} closed the connection: {error}", writing=False) from error


def over(deadline: Deadline) -> bool:
    """Whether there is no time left."""
    try:
        deadline.left()
    except TimeoutError:
        return True
    return False
