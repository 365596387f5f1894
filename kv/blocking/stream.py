"""A connected stream to a daemon: bytes out, bytes in, within a deadline. It knows nothing of what they mean.

Uses ``_socket``, the C part of the standard library's socket module: importing the rest would cost the short-lived
command a quarter of its time.
"""

import errno
import os
import struct
import sys
import time
from _weakref import ref

try:
    from select import POLLIN, POLLOUT, poll
except ImportError:
    raise ImportError(
        "kv needs select.poll, which eventlet.monkey_patch() takes away: write eventlet.monkey_patch(select=False)"
    ) from None
try:
    import _socket as socket
except ImportError:  # another Python implementation
    import socket  # type: ignore[no-redef]

from kv.errors import Forbidden, Unavailable
from kv.wire.protocol import FrameReader
from kvd.protocol.address import MAX_UNIX_PATH_BYTES, candidate_sockets, is_network, normalize, parse_tcp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kv.blocking.tls import TlsFiles
    from kv.settings import ClientSettings

# The allocator would map and unmap memory of twice this size for each read.
_READ_SIZES = (64 * 1024,)
_MAX_POLL_MS = 2**31 - 1
_ONE_DESCRIPTOR = (socket.CMSG_LEN(4),)
_QUEUE_FULL_PAUSE_S = 0.002
# Between greetings, while the daemon that answers is stopping.
STOPPING_PAUSE_S = 0.02
# recv itself waits for at most this long, which saves a poll each time. A longer wait polls after that.
_RECV_WAIT_S = 0.05
_RECV_TIMEOUT = struct.pack("@ll", 0, int(_RECV_WAIT_S * 1_000_000))
_UCRED = struct.Struct("3i")
# All streams of this process. A forked child closes its copies of their descriptors at once: while one is open, the
# daemon would not see the parent close its own, and would keep the parent's ephemeral keys and locks.
_open_streams: "list[ref[Stream]]" = []


class Deadline:
    """The point in time at which a call gives up; None: never."""

    __slots__ = ("_at", "seconds")

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._at = None if seconds is None else time.monotonic() + seconds

    def remaining(self) -> float | None:
        """Return the seconds left, for settimeout. Raises TimeoutError when there are none."""
        if self._at is None:
            return None
        remaining = self._at - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        return remaining

    @property
    def is_over(self) -> bool:
        """Whether there is no time left."""
        return self._at is not None and self._at <= time.monotonic()

    def pause(self, seconds: float) -> bool:
        """Sleep for ``seconds``, or until there is no time left; whether there is any left."""
        if self.is_over:
            return False
        time.sleep(seconds if self._at is None else max(0.0, min(seconds, self._at - time.monotonic())))
        return not self.is_over


class Stream:
    """A connected stream socket, with or without TLS."""

    __slots__ = (
        "__weakref__",
        "_inbox",
        "_input",
        "_messages",
        "_no_wait",
        "_socket",
        "address",
        "busy_poll_us",
    )

    def __init__(self, connected: "socket.socket", address: str) -> None:
        if address.startswith("tls://"):
            connected.settimeout(0)
            self._no_wait: tuple[int, ...] = ()  # OpenSSL takes no flags
        else:
            connected.settimeout(None)
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _RECV_TIMEOUT)
            self._no_wait = (socket.MSG_DONTWAIT,)
        self._socket = connected
        self._input = poll()
        self._input.register(connected.fileno(), POLLIN)
        self._inbox: list[bytes] = []
        self._messages: list[Any] = []
        self.address = address
        self.busy_poll_us = 0  # how long to look for input before waiting for it
        _open_streams.append(ref(self, _open_streams.remove))

    def send(self, data: bytes, deadline: Deadline) -> bool:
        """Send all of ``data``; false if the peer has hung up before that.

        What the peer said before, a goodbye or the reason, can still be received then. Raises OSError, TimeoutError.
        """
        deadline.remaining()
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
            return self._socket.send(data, *self._no_wait)
        except BlockingIOError:
            return 0

    def receive_frame(self, deadline: Deadline) -> bytes:
        """Return the payload of the next frame, and drop what follows it: for a stream that carries one request.

        Raises OSError, TimeoutError, EOFError, ProtocolError.
        """
        reader = FrameReader()
        payloads: list[bytes] = []
        while not payloads:
            reader.receive(self._read(deadline), payloads)
        return payloads[0]

    def wait_for_data(self, deadline: Deadline) -> None:
        """Wait for data, or for the end of the stream; ``take`` returns it. Raises OSError, TimeoutError.

        A signal loses nothing, at whatever moment it comes: list.extend calls recv, so what recv returns is in the list
        before Python looks for signals again.
        """
        if self.busy_poll_us and not self._inbox:
            remaining, until = deadline.remaining(), time.monotonic() + self.busy_poll_us / 1_000_000
            until = until if remaining is None else min(until, time.monotonic() + remaining)
            while not self._input.poll(0) and time.monotonic() < until:
                pass
        remaining = deadline.remaining()
        # recv on TLS does not wait, and recv must not wait for longer than the deadline.
        polls = not self._no_wait or (remaining is not None and remaining <= _RECV_WAIT_S)
        while not self._inbox:
            if polls:
                _wait_for(self._input, deadline)
            try:
                self._inbox.extend(map(self._socket.recv, _READ_SIZES))
            except BlockingIOError:
                polls = True

    def wait_briefly(self) -> bool:
        """As wait_for_data, but only for as long as recv itself waits; whether data has come. Raises OSError."""
        if not self._inbox:
            try:
                self._inbox.extend(map(self._socket.recv, _READ_SIZES))
            except BlockingIOError:
                return False
        return True

    @property
    def recv_waits(self) -> bool:
        """Whether wait_briefly waits: not over TLS, nor where the caller wants busy polling."""
        return bool(self._no_wait) and not self.busy_poll_us

    def receive_descriptor(self, deadline: Deadline) -> int | None:
        """As wait_for_data; returns the descriptor that came with the data, if any. The caller closes it."""
        # The buffer is for one descriptor; the kernel drops any others.
        flags = (socket.MSG_CMSG_CLOEXEC,)
        while not self._messages:
            _wait_for(self._input, deadline)
            try:
                self._messages.extend(map(self._socket.recvmsg, _READ_SIZES, _ONE_DESCRIPTOR, flags))
            except BlockingIOError:
                pass
        data, ancillary, _, _ = self._messages.pop()
        self._inbox.append(data)
        for level, kind, content in ancillary:
            if (level, kind, len(content)) == (socket.SOL_SOCKET, socket.SCM_RIGHTS, 4):
                return int.from_bytes(content, sys.byteorder)
        return None

    def take(self) -> bytes:
        """Return the data that has come. Raises EOFError at the end of the stream."""
        data = self._inbox.pop(0)
        if not data:
            raise EOFError
        return data

    def _read(self, deadline: Deadline) -> bytes:
        self.wait_for_data(deadline)
        return self.take()

    def has_ended(self) -> bool:
        """Whether the peer is known to have closed. Does not wait, and any thread may call it."""
        from select import POLLRDHUP

        descriptor = self._socket.fileno()
        if descriptor < 0:
            return True
        hang_up = poll()
        hang_up.register(descriptor, POLLRDHUP)
        return bool(hang_up.poll(0))

    def detach(self) -> tuple[int, bool]:
        """Return the descriptor, for the caller to use and close, and whether it is of a Unix socket."""
        family = self._socket.family
        self._socket.setblocking(False)
        return self._socket.detach(), family == socket.AF_UNIX

    def server_pid(self) -> int | None:
        """Return the process id of the listening peer, which the kernel knows; None on TCP, or if it cannot be seen."""
        if self._socket.family != socket.AF_UNIX:
            return None
        pid: int = _UCRED.unpack(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))[0]
        return pid or None

    def wait_for_end(self, deadline: Deadline) -> None:
        """Wait until the peer has closed. Raises TimeoutError."""
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
        """End the stream for both peers, so that a thread that waits for data here sees the end."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it has ended already

    def close(self) -> None:
        """Close the descriptor. In a forked child this does not disturb the parent's use of the stream."""
        self._socket.close()


def _wait_for(events: poll, deadline: Deadline) -> None:
    """Wait for one of the events. Raises TimeoutError."""
    while True:
        remaining = deadline.remaining()
        if events.poll(None if remaining is None else min(remaining * 1000, _MAX_POLL_MS)):
            return


def open_stream(
    address: str | None, deadline: Deadline, tls: "TlsFiles | None" = None, *, shake_hands: bool = True
) -> Stream:
    """Connect to ``address`` (a path, tcp:// or tls://HOST:PORT), or to the first daemon at the default addresses.

    ``tls``: the files for a tls:// address. ``shake_hands``: False leaves the TLS handshake to the caller. Raises
    Unavailable, with every address tried; Forbidden if a socket may not be opened; ValueError for a malformed address.
    """
    addresses = [address] if address is not None else _default_addresses()
    problems: list[str] = []
    denied: list[str] = []
    for candidate in addresses:
        try:
            connected = _connect(candidate, deadline)
            if shake_hands and candidate.startswith("tls://"):
                connected = _shake_hands(connected, candidate, deadline, tls)
            return Stream(connected, candidate)
        except PermissionError:
            denied.append(candidate)
        except OSError as error:
            problems.append(f"{candidate} ({_reason(error, candidate)})")
    if denied:
        text = f"permission denied: {', '.join(denied)}; {_who_may_open(denied[0])}"
        raise Forbidden(text, "forbidden")
    raise Unavailable(f"no daemon at {', '.join(problems)}{_how_to_start(address)}", addresses)


def open_home(settings: "ClientSettings", deadline: Deadline, *, shake_hands: bool = True) -> Stream:
    """Connect a client to its daemon: to the address at which the client first found one. Raises as open_stream."""
    while True:
        stream = open_stream(settings.home, deadline, settings.tls, shake_hands=shake_hands)
        if settings.settle(stream.address):
            return stream
        stream.close()


def _who_may_open(path: str) -> str:
    """Say how one gets to use a daemon whose socket one may not open."""
    text = "the socket's owner and mode decide who may use the daemon"
    try:
        found = os.stat(path)
        if not found.st_mode & 0o020:
            return text
        from grp import getgrgid

        group = getgrgid(found.st_gid).gr_name
    except (OSError, KeyError):
        return text
    return f"{text}: ask an administrator to add you to the group {group}, and log in again"


def _how_to_start(address: str | None) -> str:
    if address is None:
        return "; start one with: kv serve --daemon"
    if is_network(address):
        return ""
    from shlex import quote

    return f"; start one with: kv serve --daemon --socket {quote(address)}"


def _shake_hands(connected: "socket.socket", address: str, deadline: Deadline, tls: "TlsFiles | None") -> "Any":  # noqa: ANN401
    """Return a socket that speaks TLS over ``connected``. Raises OSError."""
    from kv.blocking.tls import connect

    host, _ = parse_tcp(address)  # type: ignore[misc]
    return connect(connected, host, tls, deadline.remaining())


def _default_addresses() -> list[str]:
    configured = os.environ.get("KVD_SOCKET")
    return [normalize(configured)] if configured else candidate_sockets()


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
        resolved = socket.getaddrinfo(*address, 0, socket.SOCK_STREAM)
    except UnicodeError:
        raise OSError(errno.EINVAL, "not a host's name") from None
    from kvd.protocol.keepalive import keep_alive

    for family, kind, protocol, _, peer in resolved:
        connecting = socket.socket(family, kind, protocol)
        connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        keep_alive(connecting)
        try:
            return _connected(connecting, peer, deadline)
        except OSError as failure:
            error = failure
    raise error


def _connected(connecting: "socket.socket", peer: object, deadline: Deadline) -> "socket.socket":
    try:
        while True:
            connecting.settimeout(deadline.remaining())
            try:
                connecting.connect(peer)  # type: ignore[arg-type]
                break
            except BlockingIOError:
                # A Unix socket whose queue is full fails at once instead of waiting, unless there is no time limit.
                time.sleep(_QUEUE_FULL_PAUSE_S)
    except BaseException:
        connecting.close()
        raise
    return connecting


def _reason(error: OSError, address: str) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if not is_network(address) and os.path.isdir(address):
        return "a directory: name the socket in it"
    return {
        errno.ENOENT: "no such socket",
        errno.ECONNREFUSED: "no process listens there",
    }.get(error.errno or 0, error.strerror or str(error))


def _close_all() -> None:
    for stream in [reference() for reference in _open_streams]:
        if stream is not None:
            stream.close()


os.register_at_fork(after_in_child=_close_all)
