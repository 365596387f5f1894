"""The blocking client's watches: the feed of ``kv/api/watches.py`` on a connection of its own."""

from __future__ import annotations

from kv.api.watches import FIRST_PAUSE_S, MAX_PAUSE_S, WatchState
from kv.blocking.stream import STOPPING_PAUSE_S, Deadline, open_home
from kv.errors import ConnectionLost, KvdError, Stopping, Unavailable
from kv.methods import Blocking
from kv.wire.protocol import ClientProtocol, StoreView

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from kv.api.watches import Feed
    from kv.blocking.stream import Stream
    from kv.results import Change
    from kv.settings import ClientSettings


class Watch(WatchState, Blocking):
    """Iterate over it for changes as they come, or ``wait`` for one with a timeout.

    Reconnects by itself. Raises Unavailable once there has been no daemon for as long as the client's timeout.
    """

    def __init__(
        self,
        settings: ClientSettings,
        prefix: str = "",
        since: int | None = None,
        apply: Callable[[Change], None] | None = None,
    ) -> None:
        super().__init__(settings, prefix, since, apply)
        self._stream: Stream | None = None
        self._protocol: ClientProtocol | None = None
        self._torn = False
        self._reopen_deadline: Deadline | None = None  # until when the daemon may come back, over all waits
        try:
            self._begin(Deadline(settings.timeout))
        except BaseException:
            self.close()
            raise

    def wait(self, timeout: float | None = None) -> Change | None:
        """Return the next change; None if none comes within ``timeout`` seconds (None: no limit), or after close()."""
        self._check_process()
        deadline = Deadline(timeout)
        while (change := self._feed.hand_out()) is None and not self._closed:
            try:
                self._receive_or_reopen(deadline)
            except TimeoutError:
                return None
        return change

    def close(self) -> None:
        """End the watch. A thread that waits for it gets None."""
        self._closed = True
        stream, self._stream = self._stream, None
        if stream is not None:
            if not self._forked:
                stream.hang_up()
            stream.close()

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

    def _receive_or_reopen(self, deadline: Deadline) -> None:
        """Take what comes, or connect again if the connection has ended. Raises TimeoutError at ``deadline``."""
        try:
            self._receive(deadline)
        except TimeoutError:
            raise
        except (OSError, EOFError, Unavailable):
            # What came before the end is handed out first; the next call finds the connection torn.
            if not self._closed and not self._feed.has_changes:
                self._reopen(deadline)

    def _receive(self, deadline: Deadline) -> None:
        stream = self._stream  # another thread may close the watch meanwhile
        if stream is None or self._protocol is None or self._torn:
            raise EOFError
        stream.wait_for_data(deadline)
        self._torn = True  # until the data is in the queue: an interrupt in between costs the connection
        self._feed.receive(self._protocol, stream.take())
        self._torn = False

    def _reopen(self, deadline: Deadline) -> None:
        """Connect again, for as long as the client's timeout. Raises TimeoutError at ``deadline``."""
        from time import sleep

        reopen_deadline = self._reopen_deadline = self._reopen_deadline or Deadline(self._settings.timeout)
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                # With a time limit of its own: a wait that begins after ``reopen_deadline`` may find the daemon back.
                self._open(Deadline(self._settings.timeout))
            except KvdError as error:
                if not error.retryable or reopen_deadline.is_over:
                    raise
            else:
                self._reopen_deadline = None
                return
            remaining = deadline.remaining()
            sleep(pause_s if remaining is None else min(pause_s, remaining))
            pause_s = min(2 * pause_s, MAX_PAUSE_S)

    def _begin(self, deadline: Deadline) -> None:
        """Connect for the first time, once no daemon that is stopping answers. Raises KvdError."""
        while True:
            try:
                self._open(deadline)
            except Stopping:
                if not deadline.pause(STOPPING_PAUSE_S):
                    raise
            else:
                return

    def _open(self, deadline: Deadline) -> None:
        """Connect, and request the feed. Raises KvdError."""
        if self._stream is not None:
            self._stream.close()
        self._torn = True  # until the feed has begun: else a later wait would read from a connection without a feed
        settings = self._settings
        stream = self._stream = open_home(settings, deadline)
        protocol = self._protocol = ClientProtocol(settings.codec, StoreView())
        begin_feed(self._feed, stream, protocol, settings.token_for(stream.address), deadline)
        self._torn = False


def begin_feed(feed: Feed, stream: Stream, protocol: ClientProtocol, token: str | None, deadline: Deadline) -> None:
    """Request a feed on a new connection. Raises KvdError."""
    opening = feed.opening(protocol, token)
    try:
        output = next(opening)
        while True:
            if output:
                stream.send(output, deadline)
                output = next(opening)
            else:
                stream.wait_for_data(deadline)
                output = opening.send(stream.take())
    except StopIteration:
        return
    except TimeoutError:
        raise Unavailable(f"no answer from {stream.address} in time", [stream.address]) from None
    except (OSError, EOFError) as error:
        raise ConnectionLost(f"{stream.address} closed the connection: {error}", writing=False) from error
