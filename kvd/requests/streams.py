"""The requests that change the role of a connection: it becomes a feed, or gets the table of the near caches.

The handler only prepares the change; the session completes it after the reply has left.
"""

import logging
import secrets

from kvd.engine.backup import Backup
from kvd.engine.engine import Engine
from kvd.engine.feeds import Feed
from kvd.protocol import messages
from kvd.requests.access import ADMINISTER, WATCH
from kvd.requests.errors import RequestError
from kvd.requests.limits import LimitChecker
from kvd.requests.peer import Peer

logger = logging.getLogger(__name__)

_NO_LIMIT = 1 << 62


class StreamHandlers:
    """Watches, backups and near caches."""

    def __init__(self, engine: Engine, limits: LimitChecker) -> None:
        self._engine = engine
        self._limits = limits

    def watch(self, request: messages.Watch, peer: Peer) -> bool:
        """Turn the connection into a feed of the commits that change keys below a prefix."""
        _check_has_no_feed(peer)
        self._limits.prefix(request.prefix)
        limit = _NO_LIMIT if peer.administrator else self._limits.limits.max_watches_per_uid
        user = peer.identity if peer.uid is None else peer.uid  # over TCP the identity that the client has proven
        peer.feed = self._engine.feeds.open(peer, user, request.prefix, request.from_version, limit)
        return True

    def backup(self, _: messages.Backup, peer: Peer) -> bool:
        """Turn the connection into a feed that sends a backup."""
        _check_has_no_feed(peer)
        peer.feed = Backup(self._engine.database, secrets.randbits(64))
        self._engine.feeds.add(peer, peer.feed)
        logger.info("backup begun by %s", peer.name)
        return True

    def attach(self, _: messages.Attach, peer: Peer) -> tuple[int, int, int, int]:
        """Send the table of generations with the reply. Return slots, lease in ms, time in µs, and the clock's id."""
        if peer.uid is None:
            raise RequestError("bad_request", "a near cache needs a Unix socket: over TCP nothing can be shared")
        if not peer.is_first_frame or peer.descriptor is not None:
            raise RequestError("bad_request", "attach may stand only in the first frame of a connection, and only once")
        reply, peer.descriptor = self._engine.near_caches.attach(peer)
        return reply


def may_go_on(peer: Peer) -> bool:
    """Whether ``peer`` still has the right to the events of its feed."""
    if isinstance(peer.feed, Feed):
        return peer.grant.may_prefix(WATCH, peer.feed.prefix)
    return peer.grant.has(ADMINISTER)


def _check_has_no_feed(peer: Peer) -> None:
    if peer.feed is not None:
        raise RequestError("bad_request", "this connection is a feed already; open another one")
