"""The pump of a feed: when its connection tells what there is to tell, and when it ends.

        something was committed, or is on the disk ─┐                       ┌─ there is more ──▶ once more, next turn
        the peer takes more ────────────────────────┴─▶ due ──▶ one batch ──┼─ all told, and the server stops ──▶ leave
                                                  a turn of its own         └─ a fault of ours ──▶ leave

A connection that cannot take more is left alone until it wakes its pump. What is told goes behind whatever that one
still holds until the disk has it; the feed itself tells nothing that is not there yet, and what becomes of a peer who
falls behind (``feeds.py``). Who loses the right to what is told has to leave (``Server.allow``, ``Server.know``).
"""

import asyncio
import logging
from typing import Protocol

from kvd.engine.feeds import Event, EventSource, Feeds
from kvd.requests.errors import error_reply, fault
from kvd.server.connection import Connection

logger = logging.getLogger(__name__)


class EventSink(Connection, Protocol):
    """What a pump needs of its connection. ``finishing``: it is to leave as soon as all is told."""

    finishing: bool

    @property
    def busy(self) -> bool:
        """Whether it can take nothing now; it wakes its pump once it can."""

    def tell(self, events: list[Event]) -> None:
        """Send events, in order behind all that was sent before."""


class FeedWriter:
    """What moves events from a feed to its connection."""

    __slots__ = ("_connection", "_feed", "_is_due", "_loop")

    def __init__(self, feed: EventSource, connection: EventSink, loop: asyncio.AbstractEventLoop, feeds: Feeds) -> None:
        self._feed = feed
        self._connection = connection
        self._loop = loop
        self._is_due = False
        feeds.subscribe(feed, self.wake)
        self.wake()

    def wake(self) -> None:
        """There may be something to tell: in a turn of its own, so that commits do not wait for it."""
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._tell)

    def _tell(self) -> None:
        self._is_due = False
        connection = self._connection
        if connection.busy:
            return
        try:
            events = self._feed.next_events()
            if events:
                connection.tell(events)
            is_all = self._feed.is_drained
        except Exception:
            logger.exception("internal error in a feed of %s", connection.peer.name)
            connection.leave(fault())
            return
        if not is_all:
            self.wake()
        elif connection.finishing:
            connection.leave(error_reply("shutting_down", "the server is stopping"))
