"""What each request does: the table of commands, and how a frame's requests are run through it.

Requests run in order. A run of gets, or of sets, goes to the store in one call: taking them together does away
with most of what Python costs for each.
"""

import hmac
import logging
from collections.abc import Callable, Sequence
from itertools import chain, groupby
from typing import Any

from kvd import __version__
from kvd.database import Database
from kvd.protocol import messages
from kvd.protocol.limits import Limits
from kvd.protocol.messages import AnyRequest
from kvd.server.peers import Peer
from kvd.server.refusals import Refusal, error_reply
from kvd.store.errors import KeysNotFound, SnapshotGone, VersionAhead
from kvd.store.store import Page

logger = logging.getLogger(__name__)

Reply = Any
SCAN_PAGE_BYTES = 256 * 1024
# A page counts keys and values; with their versions and heads an item of one byte takes some twenty.
PAGE_OVERHEAD = 20
SMALLEST_SCAN_BYTES = 9  # ["scan", "", nil, 1]
VALUE_HEAD_BYTES = 5  # MessagePack's longest, for binary


class Administration:
    """What the process offers to administrators; the service layer fills it in."""

    def status(self) -> list[tuple[str, str | int]]:
        """Name and value of all that ``kv status`` shows."""
        raise NotImplementedError

    def reload(self) -> list[str]:
        """Read the configuration again; what changed, in words. Raises Refusal with the reason if it cannot be."""
        raise NotImplementedError

    def shutdown(self) -> int:
        """Begin an orderly stop once the reply is on its way; return the process id."""
        raise NotImplementedError


class Commands:
    """Runs requests against the database."""

    def __init__(self, database: Database, limits: Limits, administration: Administration, token: str | None) -> None:
        self.database = database
        self._store = database.store
        self.limits = limits
        self._administration = administration
        self._token = token
        self._handlers: dict[type, Callable[[Any, Peer], Reply]] = {
            messages.Hello: self._hello,
            messages.Ping: self._ping,
            messages.Get: self._get,
            messages.GetMany: self._get_many,
            messages.Set: self._set,
            messages.Delete: self._delete,
            messages.Scan: self._scan,
            messages.Metrics: self._metrics,
            messages.Status: self._status,
            messages.Reload: self._reload,
            messages.Shutdown: self._shutdown,
        }

    def run(self, requests: Sequence[AnyRequest], peer: Peer, frame_bytes: int) -> list[Reply] | dict[str, object]:
        """Run a frame's requests; one reply for each, or a map that refuses the frame.

        ``frame_bytes`` is the size of the frame they came in: no key or value in it can be larger.
        """
        limits, largest_bytes = self.limits, self._store.largest_value_bytes
        if len(requests) == 1 and type(request := requests[0]) is messages.Get and peer.greeted:
            if largest_bytes <= limits.max_reply_bytes:
                # The commonest frame of all, without the detour through the table.
                return [self._get(request, peer)]
        elif len(requests) > limits.max_requests_per_frame:
            return self.too_many(len(requests))
        if not peer.greeted or self._may_be_too_large(requests, frame_bytes, max(largest_bytes, frame_bytes)):
            return self.run_counting(requests, peer, limits.max_reply_bytes)[0]
        replies: list[Reply] = []
        for kind, group in groupby(requests, type):
            if kind is messages.Get:
                replies += self._get_each([request.key for request in group])  # type: ignore[union-attr]
            elif kind is messages.Set and frame_bytes <= limits.max_value_bytes:
                replies += self._set_each(list(group), peer)  # type: ignore[arg-type]
            else:
                replies += [self.run_one(request, peer) for request in group]
        return replies

    def _may_be_too_large(self, requests: Sequence[AnyRequest], frame_bytes: int, largest_bytes: int) -> bool:
        """Whether the replies have to be counted, judged without looking at them.

        Each value in them costs its request at least one byte, and none is larger than the largest ever stored or in
        this very frame. A scan costs SMALLEST_SCAN_BYTES and brings a page, which the last of its values may overshoot.
        """
        room = self.limits.max_reply_bytes
        if frame_bytes * largest_bytes > room:
            return True
        pages = frame_bytes // SMALLEST_SCAN_BYTES * (SCAN_PAGE_BYTES * PAGE_OVERHEAD + largest_bytes)
        return pages > room and messages.Scan in set(map(type, requests))

    def too_many(self, count: int) -> dict[str, object]:
        """The map that refuses a frame of too many requests."""
        return error_reply(
            "too_large", f"a frame has at most {self.limits.max_requests_per_frame} requests, not {count}"
        )

    def run_one(self, request: AnyRequest, peer: Peer) -> Reply:
        """Run one request; an error becomes its reply."""
        try:
            if not peer.greeted and type(request) is not messages.Hello:
                raise Refusal("unauthenticated", "say hello with a token first")
            return self._handlers[type(request)](request, peer)
        except Refusal as refusal:
            return refusal.reply()
        except KeysNotFound as error:
            shown = ", ".join(map(repr, error.keys[:5])) + (", …" if len(error.keys) > 5 else "")
            return error_reply("not_found", f"no such key: {shown}; nothing was deleted", keys=error.keys)
        except SnapshotGone as error:
            text = (
                f"version {error.version} has left the history; the oldest that can be read is {error.oldest_readable}"
            )
            return error_reply("snapshot_gone", text, oldest_readable=error.oldest_readable)
        except VersionAhead as error:
            return error_reply("bad_request", f"there is no version {error.version} yet; the newest is {error.newest}")
        except Exception:
            logger.exception("internal error in %s of %s", type(request).__name__, peer.name)
            return error_reply("internal", "a fault in the server; its logging says more")

    def run_counting(self, requests: Sequence[AnyRequest], peer: Peer, room_bytes: int) -> tuple[list[Reply], int]:
        """Run requests one by one, replacing each reply that does not fit into ``room_bytes``; and what is left."""
        replies: list[Reply] = []
        for request in requests:
            reply = self.run_one(request, peer)
            size = _reply_bytes(request, reply)
            if size > room_bytes:
                text = f"the reply of {size} bytes does not fit into a frame of {self.limits.max_reply_bytes}"
                reply = error_reply("reply_too_large", text)
            else:
                room_bytes -= size
            replies.append(reply)
        return replies, room_bytes

    # ------------------------------------------------------------------ keys and values

    def _get(self, request: messages.Get, _: Peer) -> Reply:
        value = self._store.get(request.key)
        return self._refused_read([request.key]) if value is None else value

    def _get_each(self, keys: list[str]) -> list[Reply]:
        values: list[Reply] = self._store.get_many(keys)
        if not all(values):  # quicker than `None in`, and an empty value does no harm
            for number, key in enumerate(keys):
                if values[number] is None:
                    values[number] = self._refused_read([key])
        return values

    def _get_many(self, request: messages.GetMany, _: Peer) -> Reply:
        self._check_count(len(request.keys))
        values = self._store.get_many(request.keys, request.at)
        refused = None if all(values) else self._refused_read(request.keys)
        return values if refused is None else refused

    def _set(self, request: messages.Set, peer: Peer) -> int:
        self._check_entries(request.entries)
        return self.database.set(request.entries, peer.name)

    def _set_each(self, requests: list[messages.Set], peer: Peer) -> list[Reply]:
        """Run sets out of a frame so small that no value can be too large."""
        batch = [request.entries for request in requests]
        # A code point is at most four bytes of UTF-8.
        lengths = set(map(len, chain.from_iterable(batch)))
        too_many = max(map(len, batch)) > self.limits.max_keys_per_request
        if too_many or (lengths and (min(lengths) == 0 or max(lengths) * 4 > self.limits.max_key_bytes)):
            return [self.run_one(request, peer) for request in requests]
        return self.database.set_each(batch, peer.name)

    def _delete(self, request: messages.Delete, peer: Peer) -> tuple[int, int]:
        self._check_count(len(request.keys))
        for key in request.keys:
            self._check_key(key)
        return self.database.delete(request.keys, peer.name, missing_ok=request.missing_ok)

    def _scan(self, request: messages.Scan, _: Peer) -> Page:
        if not 1 <= request.limit <= self.limits.max_keys_per_request:
            raise Refusal("bad_request", f"a scan's limit is 1 to {self.limits.max_keys_per_request}")
        return self._store.scan(
            request.start,
            request.end,
            request.limit,
            at=request.at,
            keys_only=request.keys_only,
            max_bytes=SCAN_PAGE_BYTES,
        )

    # ------------------------------------------------------------------ limits

    def _refused_read(self, keys: list[str]) -> dict[str, object] | None:
        """An error reply if one of ``keys`` cannot be a key; asked after the look-up, as only absent ones need it."""
        try:
            for key in keys:
                self._check_key(key)
        except Refusal as refusal:
            self._store.counters.get_operations -= len(keys)
            return refusal.reply()
        return None

    def _check_key(self, key: str) -> None:
        if not key:
            raise Refusal("bad_request", "a key has at least one byte")
        # A code point is at most four bytes of UTF-8.
        if len(key) * 4 > self.limits.max_key_bytes and len(key.encode()) > self.limits.max_key_bytes:
            raise Refusal("too_large", f"a key has at most {self.limits.max_key_bytes} bytes")

    def _check_count(self, count: int) -> None:
        if count > self.limits.max_keys_per_request:
            raise Refusal("too_large", f"a request names at most {self.limits.max_keys_per_request} keys")

    def _check_entries(self, entries: dict[str, bytes]) -> None:
        if not entries:
            return
        self._check_count(len(entries))
        if "" in entries or max(map(len, entries)) * 4 > self.limits.max_key_bytes:
            for key in entries:
                self._check_key(key)
        if max(map(len, entries.values())) > self.limits.max_value_bytes:
            raise Refusal("too_large", f"a value has at most {self.limits.max_value_bytes} bytes")

    # ------------------------------------------------------------------ the server itself

    def _hello(self, request: messages.Hello, peer: Peer) -> list[object]:
        if request.protocol != messages.PROTOCOL:
            text = f"this server speaks protocol {messages.PROTOCOL}, not {request.protocol}"
            raise Refusal("unsupported_protocol", text, protocols=[messages.PROTOCOL])
        if not peer.greeted:
            if self._token is None or not hmac.compare_digest((request.token or "").encode(), self._token.encode()):
                logger.warning("refused %s: wrong or missing token", peer.name)
                raise Refusal("unauthenticated", "wrong or missing token")
            peer.greeted = True
        database = self.database
        return [messages.PROTOCOL, __version__, database.store_id, database.store.version, self.limits]

    def _ping(self, request: messages.Ping, peer: Peer) -> bool:
        return True

    def _metrics(self, request: messages.Metrics, peer: Peer) -> list[tuple[str, int]]:
        return self.database.metrics()

    def _status(self, request: messages.Status, peer: Peer) -> list[tuple[str, str | int]]:
        return self._administration.status()

    def _reload(self, request: messages.Reload, peer: Peer) -> list[str]:
        self._check_administrator(peer, "reload")
        return self._administration.reload()

    def _shutdown(self, request: messages.Shutdown, peer: Peer) -> list[int]:
        self._check_administrator(peer, "shutdown")
        logger.info("shutdown asked for by %s", peer.name)
        return [self._administration.shutdown()]

    def _check_administrator(self, peer: Peer, what: str) -> None:
        if not peer.administrator:
            logger.warning("refused %s: may not ask for %s", peer.name, what)
            raise Refusal("forbidden", f"only root and the daemon's own user may ask for {what}, over the Unix socket")


def _reply_bytes(request: AnyRequest, reply: Reply) -> int:
    """How many bytes a reply takes on the wire, without encoding what may be gigabytes."""
    if type(reply) is bytes:
        return len(reply) + VALUE_HEAD_BYTES
    if type(request) is messages.GetMany and type(reply) is list:
        return sum(len(value or b"") + VALUE_HEAD_BYTES for value in reply)
    return len(messages.encode_replies(reply))  # small, or a page
