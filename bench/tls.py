"""What TLS costs: the same work over TCP on loopback, with and without TLS. The load generator uses OpenSSL."""

from collections.abc import Iterator
from contextlib import ExitStack

import msgspec

from bench.build import TLS
from bench.context import THROUGHPUT_KEYS, Context
from bench.data import chosen
from bench.errors import BenchError
from bench.exchange import Exchange
from bench.limits import Work, gets, sets
from bench.peers.kvd import exchange, frame
from bench.process import output
from bench.rows import Row, Samples, Target
from bench.servers import Server
from bench.throughput import CONNECTIONS, rate

_TOKEN = "a-token-of-the-benchmarks"  # noqa: S105 (of a server of our own, on loopback)
_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
_MIN_RATIO = 0.5
_MANY = Work(
    "get_many of 100",
    Exchange(frame(["get_many", list(chosen(100, THROUGHPUT_KEYS))]), None, 100),
    10_000,
)
WORKS = (gets(1, 60_000), gets(64, 10_000), _MANY, sets(1, 60_000), sets(64, 3_000))


def tls(context: Context) -> Iterator[Row]:
    """TLS beside plain TCP, over 32 connections."""
    with ExitStack() as stack:
        ours, plain = _Case(context, stack, encrypted=True), _Case(context, stack, encrypted=False)
        for work in WORKS:
            figures = [(ours.measure(work), plain.measure(work)) for _ in range(context.rounds)]
            with_it, without = zip(*figures, strict=True)
            target = Target(">=", _MIN_RATIO)
            yield Row(f"{work.title}, TLS", "/s", Samples("kvd", with_it), Samples("plain TCP", without), target)


class _Case:
    """One loaded daemon on a port of loopback."""

    def __init__(self, context: Context, stack: ExitStack, *, encrypted: bool) -> None:
        self._context = context
        directory = self._directory = context.new_directory()
        (directory / "token").write_text(_TOKEN)
        (directory / "token").chmod(0o600)
        config = '[listen]\ntcp = ["127.0.0.1:0"]\ntoken_file = "token"\n'
        if encrypted:
            files = ("-keyout", str(directory / "key.pem"), "-out", str(directory / "own.pem"))
            output(["openssl", "req", "-x509", *_NEW_KEY, "-days", "2", "-subj", "/CN=bench", *files])
            config += 'tls_certificate = "own.pem"\ntls_key = "key.pem"\n'
        (directory / "kvd.toml").write_text(config)
        (directory / "kvd.toml").chmod(0o600)
        (directory / "greeting").write_bytes(frame(["hello", 1, "bench", _TOKEN]))
        peer = context.kvd.with_options("--config", str(directory / "kvd.toml"))
        self._server = stack.enter_context(Server(peer, directory))
        self._server.load(THROUGHPUT_KEYS)
        self._address = self._listening_address()

    def _listening_address(self) -> str:
        """The daemon's address, in the form that load.c accepts."""
        [status] = msgspec.msgpack.decode(self._server.try_once(exchange(["status"])))
        for word in str(dict(status)["listening"]).split():
            scheme, _, place = word.partition("://")
            if scheme in ("tls", "tcp"):
                return f"tls:{place}" if scheme == "tls" else place
        raise BenchError(f"kvd does not listen on TCP: {status}")

    def measure(self, work: Work) -> float:
        """Measure one round."""
        load = self._context.program("load", TLS)
        sent = self._context.work(work.rounds_sent)
        file, greeting = self._directory / "request", self._directory / "greeting"
        figure = rate(load, self._address, file, work.exchange, CONNECTIONS, sent, greeting=[str(greeting)])
        self._server.try_once(work.exchange)
        return figure
