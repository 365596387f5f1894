"""A backup as it comes from the daemon: the bytes of a file, in pieces, on a connection of its own."""

from __future__ import annotations

from collections import deque

from kv.api.watches import Feed
from kv.blocking.stream import Deadline, open_home
from kv.blocking.watch import begin_feed
from kv.errors import ConnectionLost, KvdError, Refused
from kv.wire import operations
from kv.wire.exchange import Exchange
from kv.wire.protocol import ClientProtocol, StoreView

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, Self

    from kv.blocking.client import Client


class Piece:
    """A part of the file. So far it has ``keys`` of about ``keys_in_all``. Only the last piece has a ``version``."""

    __slots__ = ("data", "keys", "keys_in_all", "version")

    def __init__(self, data: bytes, keys: int, keys_in_all: int, version: int | None = None) -> None:
        self.data = data
        self.keys = keys
        self.keys_in_all = keys_in_all
        self.version = version


class BackupFeed(Feed):
    """The pieces of a backup that have come. No I/O."""

    def __init__(self) -> None:
        super().__init__("", None)
        self.pieces: deque[Piece] = deque()

    def _request(self, protocol: ClientProtocol) -> Exchange:
        return Exchange((operations.backup(),))

    def _take(self, kind: str, *fields: Any) -> None:  # noqa: ANN401
        if kind == "data":
            data, keys, keys_in_all = fields
            self.pieces.append(Piece(bytes(data), int(keys), int(keys_in_all)))
        elif kind == "end":
            version, _, keys = fields
            self.pieces.append(Piece(b"", int(keys), int(keys), int(version)))
        elif kind == "failed":
            raise Refused(f"no backup: {fields[0]}", "snapshot_gone")


class BackupStream:
    """Iterate over it for the pieces of a backup, in order. The backup is complete with the piece with a ``version``.

    ``timeout``: seconds to wait for each piece (None: no limit). Raises KvdError, for example Forbidden.
    """

    def __init__(self, client: Client, timeout: float | None) -> None:
        settings = client.settings
        self._timeout = timeout
        self._feed = BackupFeed()
        self._is_complete = False
        self._failure: KvdError | None = None
        self._stream = open_home(settings, Deadline(settings.timeout))
        self._protocol = ClientProtocol(settings.codec, StoreView())
        try:
            token = settings.token_for(self._stream.address)
            begin_feed(self._feed, self._stream, self._protocol, token, Deadline(settings.timeout))
        except BaseException:
            self._stream.close()
            raise

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Piece:
        if self._is_complete:
            raise StopIteration
        pieces = self._feed.pieces
        while not pieces:
            if self._failure is not None:
                raise self._failure
            self._receive(Deadline(self._timeout))
        piece = pieces.popleft()
        self._is_complete = piece.version is not None
        return piece

    def _receive(self, deadline: Deadline) -> None:
        address = self._stream.address
        try:
            self._stream.wait_for_data(deadline)
            data = self._stream.take()
        except TimeoutError:
            text = f"{address} has sent nothing more of the backup for {self._timeout:g} seconds"
            raise ConnectionLost(text, writing=False) from None
        except (OSError, EOFError) as error:
            raise ConnectionLost(f"{address} closed the connection before the backup ended", writing=False) from error
        try:
            self._feed.receive(self._protocol, data)
        except KvdError as error:
            self._failure = error  # raised after the pieces that came before it, perhaps the last one

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
