"""A backup as it comes from the daemon: the bytes of a file, piece by piece, on a connection of its own."""

from __future__ import annotations

from collections import deque

from kv.blocking.stream import Deadline, open_connection
from kv.blocking.watch import Feed, begin_feed
from kv.errors import ConnectionLost, KvdError, Refused
from kv.wire import operations
from kv.wire.exchange import Exchange, StoreView
from kv.wire.protocol import ClientProtocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, Self

    from kv.blocking.client import Client


class Piece:
    """Some of the file. ``keys`` of about ``keys_in_all`` are in it so far; ``version`` is set in the last one only."""

    __slots__ = ("data", "keys", "keys_in_all", "version")

    def __init__(self, data: bytes, keys: int, keys_in_all: int, version: int | None = None) -> None:
        self.data = data
        self.keys = keys
        self.keys_in_all = keys_in_all
        self.version = version


class _Told(Feed):
    """What the daemon has told of a backup. No I/O."""

    def __init__(self) -> None:
        super().__init__("", None)
        self.pieces: deque[Piece] = deque()

    def _request(self, channel: ClientProtocol) -> Exchange:
        return Exchange((operations.backup(),))

    def _take(self, kind: str, *told: Any) -> None:  # noqa: ANN401
        if kind == "data":
            data, keys, keys_in_all = told
            self.pieces.append(Piece(bytes(data), int(keys), int(keys_in_all)))
        elif kind == "end":
            version, _, keys = told
            self.pieces.append(Piece(b"", int(keys), int(keys), int(version)))
        elif kind == "failed":
            raise Refused(f"no backup: {told[0]}", "snapshot_gone")


class BackupStream:
    """Iterate over it for the pieces of a backup, in order; it is whole once one with a ``version`` has come.

    ``timeout``: seconds to wait for each piece (None: for ever). Raises KvdError, Forbidden among them.
    """

    def __init__(self, client: Client, timeout: float | None) -> None:
        self._timeout = timeout
        self._feed = _Told()
        self._is_whole = False
        self._failure: KvdError | None = None
        self._connection = open_connection(client._address, Deadline(client._timeout), client._tls)
        self._channel = ClientProtocol(client._codec, StoreView())
        try:
            token = client._token_for(self._connection.address)
            begin_feed(self._feed, self._connection, self._channel, token, Deadline(client._timeout))
        except BaseException:
            self._connection.close()
            raise

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Piece:
        if self._is_whole:
            raise StopIteration
        pieces = self._feed.pieces
        while not pieces:
            if self._failure is not None:
                raise self._failure
            self._receive(Deadline(self._timeout))
        piece = pieces.popleft()
        self._is_whole = piece.version is not None
        return piece

    def _receive(self, deadline: Deadline) -> None:
        address = self._connection.address
        try:
            self._connection.wait_for_data(deadline)
            data = self._connection.take()
        except TimeoutError:
            text = f"{address} has told nothing more of the backup for {self._timeout:g} seconds"
            raise ConnectionLost(text, writing=False) from None
        except (OSError, EOFError) as error:
            raise ConnectionLost(f"{address} closed the connection before the backup ended", writing=False) from error
        try:
            self._feed.receive(self._channel, data)
        except KvdError as error:
            self._failure = error  # what came before it, perhaps the end, goes first

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
