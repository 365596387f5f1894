"""The sender of requests: one client, its identity, its rights, and what it holds. Nothing here knows a socket."""

from hashlib import blake2b

from kvd.engine.feeds import EventSource
from kvd.requests.access import ADMINISTER, Access, Grant, Identity, is_trusted
from kvd.store.authors import Author


class Peer:
    """One client.

    ``uid``: as the kernel reports it (SO_PEERCRED at connect), None on TCP. ``is_authenticated``: whether the client
    may send anything but hello; on a Unix socket the socket's mode has already decided that. ``grant``: what the client
    may do. ``is_restricted``: whether there are keys that it may not use, so that its requests are checked one by one.
    ``last_snapshot``: the snapshot that it began last. ``feed``: the source of its events, once the client only
    listens. ``is_first_frame``: whether it has sent no frame before. ``descriptor``: a file descriptor that is sent to
    the client with the next bytes.
    """

    __slots__ = (
        "administrator",
        "author",
        "descriptor",
        "feed",
        "grant",
        "identity",
        "is_authenticated",
        "is_first_frame",
        "is_restricted",
        "last_snapshot",
        "name",
        "token",
        "uid",
    )

    def __init__(
        self,
        name: str,
        uid: int | None,
        pid: int | None = None,
        process: str | None = None,
        gids: frozenset[int] = frozenset(),
    ) -> None:
        self.name = name
        self.uid = uid
        self.identity = Identity(uid=uid, gids=gids)
        self.token: str | None = None  # the one that the client has shown
        self.author = Author(uid, pid, name if process is None else process)
        self.is_authenticated = uid is not None
        self.last_snapshot: int | None = None
        self.feed: EventSource | None = None
        self.is_first_frame = True
        self.descriptor: int | None = None
        self.grant = Grant.EVERYTHING if self.is_trusted else Grant.ALL_BUT_ADMINISTER
        self.administrator = self.is_trusted
        self.is_restricted = False

    def authenticate_as(self, identity: Identity) -> None:
        """Take the identity that a client on TCP has proven; its commits carry that name from now on."""
        self.identity = identity
        self.is_authenticated = True
        if identity.certificate or identity.token:
            self.name = f"{self.name} ({identity.text})"
            # With its kind, because a token may have the name of a certificate, of a process or of the server itself.
            self.author = Author(None, None, identity.text)

    def unique_id(self, id_: bytes) -> bytes:
        """Return the id of a write, made unlike those of other clients, which may choose the same.

        On a Unix socket the uid keeps them apart; on TCP the name that the client has shown goes into the id.
        """
        if self.uid is not None:
            return id_
        identity = self.identity
        shown = identity.text if identity.certificate or identity.token else self.token or ""
        return blake2b(id_, key=blake2b(shown.encode()).digest(), digest_size=16).digest()

    @property
    def is_trusted(self) -> bool:
        """Whether the client is root or the daemon's own user, who may do everything whatever the rules say."""
        return is_trusted(self.uid)

    def apply_access(self, access: Access) -> None:
        """Judge the client by these rules from now on."""
        self.grant = access.grant_for(self.identity)
        self.administrator = self.grant.has(ADMINISTER)
        self.is_restricted = self.grant.is_limited
