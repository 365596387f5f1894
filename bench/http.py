"""HTTP: a get of one key on persistent connections, beside 40 lines of Go; and what the listener costs the socket."""

import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec

from bench.context import THROUGHPUT_KEYS, Context
from bench.data import Items, chosen
from bench.errors import BenchError
from bench.exchange import PATIENCE_S, Exchange
from bench.peers.kvd import exchange
from bench.process import Child, clean_environment, output
from bench.rows import Row, Samples, Target
from bench.servers import Server
from bench.throughput import CONNECTIONS, GET_1, GET_64, operations_a_second, rate

_SOURCE = Path(__file__).with_name("http_map.go")
_LISTENS = ("--http", "127.0.0.1:0", "--http-open")
_ROUNDS_SENT = 150_000
_MIN_BESIDE_GO = 0.9
_MIN_OF_SOCKET = 0.98


def http(context: Context) -> Iterator[Row]:
    """GET of one key over 32 persistent connections."""
    [(key, value)] = chosen(1, THROUGHPUT_KEYS).items()
    load, file = context.program("load"), context.new_directory() / "request"
    with ExitStack() as stack:
        server = stack.enter_context(Server(context.kvd.with_options(*_LISTENS), context.new_directory()))
        addresses = {"kvd": _port_of(server), "Go net/http": _go(context, stack)}
        figures: dict[str, list[float]] = {name: [] for name in addresses}
        exchanges = {name: _prepare(address, key, value) for name, address in addresses.items()}
        for _ in range(context.rounds):
            for name, address in addresses.items():
                sent = context.work(_ROUNDS_SENT)
                figures[name].append(rate(load, address, file, exchanges[name], CONNECTIONS, sent))
    ours, theirs = (Samples(name, tuple(values)) for name, values in figures.items())
    yield Row("GET of one key over HTTP", "/s", ours, theirs, Target(">=", _MIN_BESIDE_GO))


def http_idle(context: Context) -> Iterator[Row]:
    """The daemon's own protocol while the HTTP listener is open and no client uses it."""
    load = context.program("load")
    with ExitStack() as stack:
        kinds = {"kvd with HTTP": context.kvd.with_options(*_LISTENS), "without": context.kvd}
        servers = {name: stack.enter_context(context.fresh(kind)) for name, kind in kinds.items()}
        for server in servers.values():
            server.load(THROUGHPUT_KEYS)
        for work in (GET_1, GET_64):
            items: Items = chosen(work.keys, THROUGHPUT_KEYS)
            gets = context.kvd.gets(items)
            figures: dict[str, list[float]] = {name: [] for name in servers}
            for _ in range(context.rounds):
                for name, server in servers.items():
                    sent = context.work(work.rounds_sent)
                    figures[name].append(operations_a_second(load, server, gets, CONNECTIONS, sent))
            ours, theirs = (Samples(name, tuple(values)) for name, values in figures.items())
            title = f"{work.keys} get{'s' * (work.keys > 1)} a frame, HTTP on and idle"
            yield Row(title, "/s", ours, theirs, Target(">=", _MIN_OF_SOCKET))


def _port_of(server: Server) -> str:
    [status] = msgspec.msgpack.decode(server.try_once(exchange(["status"])))
    for word in str(dict(status)["listening"]).split():
        if word.startswith("http://"):
            return word.removeprefix("http://")
    raise BenchError(f"kvd does not listen on HTTP: {status}")


def _go(context: Context, stack: ExitStack) -> str:
    """Build and start the server in Go, and return its address. Raises BenchError without Go."""
    go = shutil.which("go")
    if go is None:
        raise BenchError("go is not installed: apt-get install golang-go")
    directory = context.new_directory()
    program, log = directory / "http_map", directory / "log"
    environment = clean_environment() | {"GOCACHE": str(directory), "HOME": str(directory), "GO111MODULE": "off"}
    output([go, "build", "-o", str(program), str(_SOURCE)], environment)
    child = Child([str(program), "127.0.0.1:0"], log, clean_environment())
    stack.callback(child.stop)
    child.wait_for_output("listening at ", PATIENCE_S)
    return child.output().rpartition(" ")[2].strip()


def _prepare(address: str, key: str, value: bytes) -> Exchange:
    """Store the key and get it once. Returns the exchange to repeat."""
    host, _, port = address.rpartition(":")
    head = f"/v1/{key} HTTP/1.1\r\nHost: {address}\r\n"
    get = f"GET {head}User-Agent: bench\r\nAccept: */*\r\n\r\n".encode()
    with socket.create_connection((host, int(port)), PATIENCE_S) as connection:
        connection.sendall(f"PUT {head}Content-Length: {len(value)}\r\n\r\n".encode() + value)
        if b" 201 " not in connection.recv(4096):
            raise BenchError(f"{address} did not store the key")
        connection.sendall(get)
        reply = b""
        while not reply.endswith(value):
            more = connection.recv(4096)
            if not more:
                raise BenchError(f"{address} answered {reply!r}")
            reply += more
    return Exchange(get, len(reply), 1)
