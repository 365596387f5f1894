"""Who a client is: hello, and the tokens that clients on TCP show."""

import hashlib
import logging
import os
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
        self._digest_key = os.urandom(16)
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
        """Return the token that ``shown`` is, if it is valid.

        It is found by a digest with a secret key. So the time depends neither on how many tokens there are, nor on how
        many bytes of a guess are right.
        """
        return self._by_digest.get(self._digest(shown))

    @property
    def tokens(self) -> Mapping[str, str | None]:
        """The tokens in force."""
        return self._tokens

    @tokens.setter
    def tokens(self, tokens: Mapping[str, str | None]) -> None:
        self._tokens = tokens
        self._by_digest = {self._digest(token.encode()): token for token in tokens}

    def _digest(self, text: bytes) -> bytes:
        return hashlib.blake2b(text, key=self._digest_key, digest_size=32).digest()

    def authenticate(self, peer: Peer, token: str) -> None:
        """Make ``peer`` the holder of ``token``, which is valid."""
        peer.token = token
        peer.authenticate_as(Identity(token=self.tokens[token]))
        peer.apply_access(self.access)

    def token_is_valid(self, peer: Peer) -> bool:
        """Whether the token that ``peer`` has shown is still valid and has the same name; true without a token."""
        token = peer.token
        return token is None or (token in self.tokens and self.tokens[token] == peer.identity.token)
