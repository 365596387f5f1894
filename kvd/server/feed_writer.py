"""Decides when events move from a feed to its connection, and when that ends.

        a commit, or more on the disk ─┐                       ┌─ there is more ──▶ again, in the next turn
        the peer reads again ──────────┴─▶ due ──▶ one batch ──┼─ all sent, and the server stops ──▶ close
                                        a turn of its own      └─ a fault in the server ──▶ close

While a connection cannot take more, its writer waits until the connection wakes it. Events go out after the replies
that wait for the disk. The feed itself yields only durable events, and decides what happens to a peer that is too slow
(``kvd/engine/feeds.py``). A peer that loses the right to its feed is disconnected (``Server.set_access_rules``,
``Server.set_tokens``).
"""

import logging
from typing import Protocol

from kvd.engine.feeds import Event, EventSource, Feeds
from kvd.requests.errors import error_reply, internal_error
from kvd.requests.turns import Turns
from kvd.server.connection import Connection

__all__ = ["Event", "EventSink", "EventSource", "FeedWriter"]

logger = logging.getLogger(__name__)


class EventSink(Connection, Protocol):
    """What a writer needs of its connection. ``is_draining``: it must close as soon as all events are sent."""

    is_draining: bool

    @property
    def is_busy(self) -> bool:
        """Whether it can take no events now; it wakes its writer once it can."""

    def send_events(self, events: list[Event]) -> None:
        """Send events, in order after everything that was sent before."""


class FeedWriter:
    """Writes the events of one feed to one connection."""

    __slots__ = ("_connection", "_feed", "_is_due", "_turns")

    def __init__(self, feed: EventSource, feeds: Feeds, connection: EventSink, turns: Turns) -> None:
        self._feed = feed
        self._connection = connection
        self._turns = turns
        self._is_due = False
        feeds.subscribe(feed, self.wake)
        self.wake()

    def wake(self) -> None:
        """Look for events in a later turn of the loop, so that commits do not wait for it."""
        if not self._is_due:
            self._is_due = True
            self._turns.add(self._write)

    def _write(self) -> None:
        self._is_due = False
        connection = self._connection
        if connection.is_busy:
            return
        try:
            events = self._feed.next_events()
            if events:
                connection.send_events(events)
            is_drained = self._feed.is_drained
        except Exception:
            logger.exception("internal error in a feed of %s", connection.peer.name)
            connection.close_with_error(internal_error())
            return
        if not is_drained:
            self.wake()
        elif connection.is_draining:
            connection.close_with_error(error_reply("shutting_down", "the server is stopping"))
