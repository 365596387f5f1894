"""Who a client is: hello, and the tokens that clients on TCP show."""

import hmac
import logging
from collections.abc import Mapping

from kvd import __version__
from kvd.engine.database import Database
from kvd.protocol import messages
from kvd.requests.access import Access, Identity
from kvd.requests.errors import RequestError
from kvd.requests.limits import LimitChecker
from kvd.requests.peer import Peer

logger = logging.getLogger(__name__)


class Authentication:
    """The tokens and the access rules in force; a reload replaces both.

    ``tokens``: each token with the name of its holder, or None if it has no name.
    """

    def __init__(
        self, database: Database, limits: LimitChecker, access: Access, tokens: Mapping[str, str | None]
    ) -> None:
        self._database = database
        self._limits = limits
        self.access = access
        self.tokens = tokens

    def hello(self, request: messages.Hello, peer: Peer) -> list[object]:
        """Agree on the protocol, and authenticate a client on TCP."""
        if request.protocol != messages.PROTOCOL:
            text = f"this server speaks protocol {messages.PROTOCOL}, not {request.protocol}"
            raise RequestError("unsupported_protocol", text, protocols=[messages.PROTOCOL])
        if not peer.is_authenticated:
            token = self.match_token((request.token or "").encode())
            if token is None:
                logger.warning("refused %s: wrong or missing token", peer.name)
                raise RequestError("unauthenticated", "wrong or missing token")
            self.authenticate(peer, token)
        database = self._database
        return [messages.PROTOCOL, __version__, database.store_id, database.store.version, self._limits.limits]

    def match_token(self, shown: bytes) -> str | None:
        """Return the token that ``shown`` is, if it is valid. All are compared, so that timing reveals nothing."""
        matches = [token for token in self.tokens if hmac.compare_digest(shown, token.encode())]
        return matches[0] if matches else None

    def authenticate(self, peer: Peer, token: str) -> None:
        """Make ``peer`` the holder of ``token``, which is valid."""
        peer.token = token
        peer.authenticate_as(Identity(token=self.tokens[token]))
        peer.apply_access(self.access)

    def token_is_valid(self, peer: Peer) -> bool:
        """Whether the token that ``peer`` has shown is still valid and has the same name; true without a token."""
        token = peer.token
        return token is None or (token in self.tokens and self.tokens[token] == peer.identity.token)
