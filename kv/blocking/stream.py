"""One connection to a daemon: frames out, frames in, within a time. No rules about what the frames mean.

Uses ``_socket``, the C part of the standard library's socket module: importing the rest would cost the short-lived
command a quarter of its time.
"""

import errno
import os
import struct
import sys
import time
from _weakref import ref
from select import POLLIN, POLLOUT, poll

try:
    import _socket as socket
except ImportError:  # another Python implementation
    import socket  # type: ignore[no-redef]

from kv.errors import Forbidden, ProtocolError, Unavailable
from kvd.protocol.address import MAX_UNIX_PATH_BYTES, candidate_sockets, is_network, parse_tcp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kv.blocking.tls import TlsFiles

HEADER_BYTES = 4
# More than any server sends by default; a length above it is somebody else's protocol.
MAX_REPLY_BYTES = 1 << 30
# Twice as much would be mapped and unmapped by the allocator for each read.
_READ_SIZES = (64 * 1024,)
_MAX_POLL_MS = 2**31 - 1
MAX_BUSY_POLL_US = 1_000_000
_ONE_DESCRIPTOR = (socket.CMSG_LEN(4),)
_QUEUE_FULL_PAUSE_S = 0.002
# recv waits by itself for so long at most, which saves a poll each time; whoever waits longer polls then.
_PATIENCE_S = 0.05
_PATIENCE = struct.pack("@ll", 0, int(_PATIENCE_S * 1_000_000))
_UCRED = struct.Struct("3i")
# All connections of this process. A forked child gives its copies of their descriptors back at once: with one open, the
# daemon would not see the parent's end, and would keep its ephemeral keys and locks.
_open: "list[ref[Connection]]" = []


class Deadline:
    """A point in time until which a call may take; None for ever."""

    __slots__ = ("_at", "seconds")

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._at = None if seconds is None else time.monotonic() + seconds

    def left(self) -> float | None:
        """Seconds left, for settimeout. Raises TimeoutError when there are none."""
        if self._at is None:
            return None
        left = self._at - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


class Connection:
    """A connected stream socket that carries frames."""

    __slots__ = (
        "__weakref__",
        "_at_once",
        "_early",
        "_inbox",
        "_input",
        "_messages",
        "_socket",
        "address",
        "busy_poll_us",
    )

    def __init__(self, connected: "socket.socket", address: str) -> None:
        if address.startswith("tls://"):
            connected.settimeout(0)
            self._at_once: tuple[int, ...] = ()  # OpenSSL takes no flags
        else:
            connected.settimeout(None)
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _PATIENCE)
            self._at_once = (socket.MSG_DONTWAIT,)
        self._socket = connected
        self._input = poll()
        self._input.register(connected.fileno(), POLLIN)
        self._early = b""  # what came behind the last frame: the server's goodbye
        self._inbox: list[bytes] = []
        self._messages: list[Any] = []
        self.address = address
        self.busy_poll_us = 0  # how long to look for input before waiting for it
        _open.append(ref(self, _open.remove))

    def send(self, data: bytes, deadline: Deadline) -> bool:
        """Send all of ``data``; false if the other end has hung up before it was all sent.

        What it said before that, goodbye or the reason, can then still be received. Raises OSError, TimeoutError.
        """
        deadline.left()
        try:
            sent = self._send_some(data)
            while sent < len(data):
                output = poll()
                output.register(self._socket.fileno(), POLLOUT)
                _wait_for(output, deadline)
                sent += self._send_some(memoryview(data)[sent:])
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def _send_some(self, data: "bytes | memoryview") -> int:
        try:
            return self._socket.send(data, *self._at_once)
        except BlockingIOError:
            return 0

    def receive(self, deadline: Deadline) -> bytes:
        """The payload of the next frame. Raises OSError, TimeoutError, EOFError, ProtocolError."""
        data = self._early or self._read(deadline)
        while len(data) < HEADER_BYTES:
            data += self._read(deadline)
        length = int.from_bytes(data[:HEADER_BYTES], "big")
        if length > MAX_REPLY_BYTES:
            raise ProtocolError(f"{self.address} does not speak kvd's protocol", "bad_reply")
        end = HEADER_BYTES + length
        if len(data) < end:
            whole = bytearray(data)
            while len(whole) < end:
                whole += self._read(deadline)
            data = bytes(whole)
        self._early = data[end:]
        return data[HEADER_BYTES:end]

    def wait_for_data(self, deadline: Deadline) -> None:
        """Return when something has come, or the end; ``take`` has it. Raises OSError, TimeoutError.

        Interrupted by a signal at whatever moment, nothing is lost: recv is called from within list.extend, so
        what it returns is in the list before Python looks for signals again.
        """
        if self.busy_poll_us and not self._inbox:
            left, until = deadline.left(), time.monotonic() + self.busy_poll_us / 1_000_000
            until = until if left is None else min(until, time.monotonic() + left)
            while not self._input.poll(0) and time.monotonic() < until:
                pass
        left = deadline.left()
        # TLS does not wait by itself, nor may recv wait for longer than there is time.
        polls = not self._at_once or (left is not None and left <= _PATIENCE_S)
        while not self._inbox:
            if polls:
                _wait_for(self._input, deadline)
            try:
                self._inbox.extend(map(self._socket.recv, _READ_SIZES))
            except BlockingIOError:
                polls = True

    def wait_briefly(self) -> bool:
        """As wait_for_data, for no longer than recv waits by itself; whether something has come. Raises OSError."""
        if not self._inbox:
            try:
                self._inbox.extend(map(self._socket.recv, _READ_SIZES))
            except BlockingIOError:
                return False
        return True

    @property
    def waits_by_itself(self) -> bool:
        """Whether wait_briefly waits at all, and for as long as it should."""
        return bool(self._at_once) and not self.busy_poll_us

    def receive_descriptor(self, deadline: Deadline) -> int | None:
        """As wait_for_data; and the descriptor that came with it, for the caller to close, if one did."""
        # A buffer for one: of any more the kernel keeps us from ever having them.
        flags = (socket.MSG_CMSG_CLOEXEC,)
        while not self._messages:
            _wait_for(self._input, deadline)
            try:
                self._messages.extend(map(self._socket.recvmsg, _READ_SIZES, _ONE_DESCRIPTOR, flags))
            except BlockingIOError:
                pass
        data, ancillary, _, _ = self._messages.pop()
        self._inbox.append(data)
        for level, kind, passed in ancillary:
            if (level, kind, len(passed)) == (socket.SOL_SOCKET, socket.SCM_RIGHTS, 4):
                return int.from_bytes(passed, sys.byteorder)
        return None

    def take(self) -> bytes:
        """What has come. Raises EOFError if that is the end."""
        data = self._inbox.pop(0)
        if not data:
            raise EOFError
        return data

    def _read(self, deadline: Deadline) -> bytes:
        self.wait_for_data(deadline)
        return self.take()

    def ended(self) -> bool:
        """Whether the other end is known to have closed; waits for nothing, and may be asked by any thread."""
        from select import POLLRDHUP

        descriptor = self._socket.fileno()
        if descriptor < 0:
            return True
        asked = poll()
        asked.register(descriptor, POLLRDHUP)
        return bool(asked.poll(0))

    def detach(self) -> tuple[int, bool]:
        """The descriptor, for somebody else to use and close, and whether it is of a Unix socket."""
        family = self._socket.family
        self._socket.setblocking(False)
        return self._socket.detach(), family == socket.AF_UNIX

    def server_pid(self) -> int | None:
        """The process that listens at the other end, by the kernel's word; None on TCP or where it cannot be seen."""
        if self._socket.family != socket.AF_UNIX:
            return None
        pid: int = _UCRED.unpack(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))[0]
        return pid or None

    def wait_for_end(self, deadline: Deadline) -> None:
        """Return when the other end has closed. Raises TimeoutError."""
        try:
            while True:
                self._read(deadline)
        except EOFError:
            return
        except TimeoutError:
            raise
        except OSError:
            return

    def hang_up(self) -> None:
        """End the stream for both ends, so that whoever waits for data here sees its end."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it has ended already

    def close(self) -> None:
        """Give the descriptor back. In a forked child this does not disturb the parent's use of the stream."""
        self._socket.close()


def _wait_for(asked: poll, deadline: Deadline) -> None:
    """Return when what is asked for has come. Raises TimeoutError."""
    while True:
        left = deadline.left()
        if asked.poll(None if left is None else min(left * 1000, _MAX_POLL_MS)):
            return


def open_connection(
    address: str | None, deadline: Deadline, tls: "TlsFiles | None" = None, *, shake_hands: bool = True
) -> Connection:
    """Connect to ``address`` (a path or tcp://HOST:PORT), or to the first daemon found where one listens by default.

    ``tls``: for a tls:// address; ``shake_hands``: False leaves that to the caller. Raises Unavailable, naming all that
    was tried, Forbidden if a socket may not be opened, ValueError for an address that cannot be one.
    """
    addresses = [address] if address is not None else _default_addresses()
    problems: list[str] = []
    denied: list[str] = []
    for candidate in addresses:
        try:
            connected = _connect(candidate, deadline)
            if shake_hands and candidate.startswith("tls://"):
                connected = _shake_hands(connected, candidate, deadline, tls)
            return Connection(connected, candidate)
        except PermissionError:
            denied.append(candidate)
        except OSError as error:
            problems.append(f"{candidate} ({_reason(error)})")
    if denied:
        text = f"permission denied: {', '.join(denied)}; the socket's owner and mode decide who may use the daemon"
        raise Forbidden(text, "forbidden")
    raise Unavailable(f"no daemon at {', '.join(problems)}{_how_to_start(address)}", addresses)


def _how_to_start(address: str | None) -> str:
    if address is None:
        return "; start one with: kv serve --daemon"
    if is_network(address):
        return ""
    from shlex import quote

    return f"; start one with: kv serve --daemon --socket {quote(address)}"


def _shake_hands(connected: "socket.socket", address: str, deadline: Deadline, tls: "TlsFiles | None") -> "Any":  # noqa: ANN401
    """A socket that speaks TLS over this one. Raises OSError."""
    from kv.blocking.tls import connect

    host, _ = parse_tcp(address)  # type: ignore[misc]
    return connect(connected, host, tls, deadline.left())


def _default_addresses() -> list[str]:
    configured = os.environ.get("KVD_SOCKET")
    return [configured] if configured else candidate_sockets()


def _connect(address: str, deadline: Deadline) -> "socket.socket":
    tcp = parse_tcp(address)
    if tcp is not None:
        return _connect_tcp(tcp, deadline)
    if len(os.fsencode(address)) > MAX_UNIX_PATH_BYTES:
        raise OSError(errno.ENAMETOOLONG, f"a socket's path has at most {MAX_UNIX_PATH_BYTES} bytes")
    return _connected(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), address, deadline)


def _connect_tcp(address: tuple[str, int], deadline: Deadline) -> "socket.socket":
    error: OSError = OSError(errno.EADDRNOTAVAIL, "no address")
    try:
        places = socket.getaddrinfo(*address, 0, socket.SOCK_STREAM)
    except UnicodeError:
        raise OSError(errno.EINVAL, "not a host's name") from None
    from kvd.protocol.keepalive import keep_alive

    for family, kind, protocol, _, place in places:
        connecting = socket.socket(family, kind, protocol)
        connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        keep_alive(connecting)
        try:
            return _connected(connecting, place, deadline)
        except OSError as failure:
            error = failure
    raise error


def _connected(connecting: "socket.socket", place: object, deadline: Deadline) -> "socket.socket":
    try:
        while True:
            connecting.settimeout(deadline.left())
            try:
                connecting.connect(place)  # type: ignore[arg-type]
                break
            except BlockingIOError:
                # A Unix socket whose queue is full says so at once instead of waiting, unless one waits for ever.
                time.sleep(_QUEUE_FULL_PAUSE_S)
    except BaseException:
        connecting.close()
        raise
    return connecting


def _reason(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return {
        errno.ENOENT: "no such socket",
        errno.ECONNREFUSED: "nobody listens there",
    }.get(error.errno or 0, error.strerror or str(error))


def _close_all() -> None:
    for connection in [each() for each in _open]:
        if connection is not None:
            connection.close()


os.register_at_fork(after_in_child=_close_all)
