"""etcd, one node, over gRPC on loopback. The load comes from h2load, the load generator of nghttp2, in C."""

import base64
import json
import re
import shutil
import socket
import time
import urllib.request
from pathlib import Path

from bench.errors import BenchError
from bench.process import Child, clean_environment, output

_START_S = 20.0
_RATE = re.compile(r"finished in [\d.]+\w+, ([\d.]+) req/s")
_SUCCEEDED = re.compile(r"(\d+) succeeded, 0 failed, 0 errored")


def missing() -> str | None:
    """Return why it cannot be measured here and what to do about it, or None if it can."""
    needed = {"etcd": "etcd-server", "h2load": "nghttp2-client"}
    packages = [package for program, package in needed.items() if shutil.which(program) is None]
    return f"not installed: apt-get install {' '.join(packages)}" if packages else None


def version() -> str:
    """The version that the program reports."""
    return output(["etcd", "--version"]).splitlines()[0]


class Etcd:
    """A running node with its data in ``directory``. Use as a context manager."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._port, peers = _free_ports(2)
        client, peer = f"http://127.0.0.1:{self._port}", f"http://127.0.0.1:{peers}"
        argv = ["etcd", "--data-dir", str(directory / "etcd"), "--listen-client-urls", client]
        argv += ["--advertise-client-urls", client, "--listen-peer-urls", peer]
        argv += ["--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}"]
        self._child = Child(argv, directory / "etcd.log", clean_environment())
        try:
            self._wait()
        except BaseException:
            self._child.stop()
            raise

    def _wait(self) -> None:
        deadline = time.monotonic() + _START_S
        while True:
            try:
                self.sets_a_second({b"key": b"value"}, 1, 1)
                return
            except BenchError:
                if self._child.ended() or time.monotonic() > deadline:
                    raise
            time.sleep(0.1)

    def sets_a_second(self, items: dict[bytes, bytes], connections: int, count: int) -> float:
        """Put one key again and again, one request at a time on each connection. Returns puts a second."""
        ((key, value),) = items.items()
        message = b"\x0a" + _sized(key) + b"\x12" + _sized(value)  # PutRequest: fields 1 and 2, both bytes
        body = self._directory / "put"
        body.write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
        argv = ["h2load", "-c", str(connections), "-m", "1", "-n", str(count), "-d", str(body)]
        argv += ["-H", "content-type: application/grpc", "-H", "te: trailers"]
        report = output([*argv, f"http://127.0.0.1:{self._port}/etcdserverpb.KV/Put"])
        rate, succeeded = _RATE.search(report), _SUCCEEDED.search(report)
        if rate is None or succeeded is None or int(succeeded[1]) != count:
            raise BenchError(f"h2load printed {report[-600:]!r}")
        self._check(key, value)
        return float(rate[1])

    def _check(self, key: bytes, value: bytes) -> None:
        """Check that the value is stored, because h2load counts an error of gRPC as a success of HTTP."""
        query = json.dumps({"key": base64.b64encode(key).decode()}).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/v3/kv/range", query) as reply:
            stored = json.load(reply).get("kvs", [{}])[0].get("value", "")
        if base64.b64decode(stored) != value:
            raise BenchError("etcd did not store the value")

    def __enter__(self) -> "Etcd":
        return self

    def __exit__(self, *_: object) -> None:
        self._child.stop()


def _sized(data: bytes) -> bytes:
    """Encode a length-delimited field of a protobuf message, up to 127 bytes."""
    if len(data) > 127:
        raise BenchError("a field of more than 127 bytes needs a longer length")
    return bytes([len(data)]) + data


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
