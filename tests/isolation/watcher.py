"""One watcher process: it connects, watches some prefix from some version, disconnects at any time, and repeats.

`python -m tests.isolation.watcher SOCKET FILE PLAN`. A session continues at the last position, or begins near the
current version, before or after it. It may read nothing for so long that it falls behind. Once the file `until`
contains the last version, the watcher follows every prefix up to it.
"""

import os
import pathlib
import random
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import msgspec

from tests.harness.waiting import DEADLINE_S
from tests.isolation.records import Recorded, Session

POLL_S = 0.01
PREFIXES = ["", "k/", "k/00", "k/003", "by/", "by/1", "none/"]
BUSY = ("", "k/")  # enough commits to fall behind
MAX_FRAMES = 30
# A session that fell behind first receives the frames that were already sent.
FRAMES_OF_A_SLOW_SESSION = 500
encode, decode = msgspec.msgpack.encode, msgspec.msgpack.decode


class Plan(msgspec.Struct):
    """``behind``: how far in the past a session may begin. ``lag``: by how many versions some sessions fall behind."""

    number: int
    until: str
    behind: int = 100
    lag: int = 0


class Stream:
    """A connection, and the frames that it receives."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._socket.settimeout(POLL_S)
        self._data = b""

    def send(self, *requests: object) -> None:
        """Send one frame. If the connection has broken, ``frames`` ends at once."""
        payload = encode(requests)
        with suppress(BrokenPipeError, ConnectionResetError):
            self._socket.sendall(len(payload).to_bytes(4, "big") + payload)

    def frames(self) -> Iterator[Any]:
        """Yield the frames, and None when none arrives for a while. Stop at the end of the stream or a final error."""
        while True:
            size = 4 + int.from_bytes(self._data[:4], "big")
            if len(self._data) >= max(size, 5):
                frame, self._data = decode(self._data[4:size]), self._data[size:]
                if isinstance(frame, dict):
                    return
                yield frame
                continue
            try:
                data = self._socket.recv(1 << 20)
            except TimeoutError:
                yield None
                continue
            except OSError:
                return
            if not data:
                return
            self._data += data

    def close(self) -> None:
        """Close, even in the middle of a frame."""
        self._socket.close()


def connect(path: str) -> tuple[Stream, int]:
    """Connect, and wait for a daemon if there is none. Return the connection and the current version."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        try:
            stream = Stream(path)
            stream.send(["hello", 1, "watcher"])
            hello = next((frame for frame in stream.frames() if frame is not None), None)
        except OSError:
            hello = None
        if hello is not None:
            return stream, hello[0][3]
        time.sleep(0.005)
    raise TimeoutError("no daemon")


class Watcher:
    """Watches in many sessions, and records them."""

    def __init__(self, path: str, plan: Plan) -> None:
        self._path = path
        self._plan = plan
        self._chance = random.Random(plan.number)  # noqa: S311 - a workload
        self._positions: dict[str, int] = {}
        self._final: int | None = None
        self.recorded = Recorded(os.getpid())

    def run(self) -> None:
        """Watch until every prefix is complete up to the last version."""
        while not self._knows_the_end():
            self._watch(self._chance.choice(PREFIXES), self._chance.randint(1, MAX_FRAMES))
        for prefix in PREFIXES:
            while self._positions.get(prefix, 0) < self._final:  # type: ignore[operator]
                self._watch(prefix, None)

    def _knows_the_end(self) -> bool:
        file = pathlib.Path(self._plan.until)
        if self._final is None and file.exists():
            self._final = int(file.read_text())
        return self._final is not None

    def _watch(self, prefix: str, max_frames: int | None) -> None:
        """Run one session, for ``max_frames`` frames or pauses between frames; None: up to the last version."""
        stream, known = connect(self._path)
        since = self._since(prefix, known) if max_frames is not None else max(0, self._positions.get(prefix, 0))
        session = Session(prefix, since, known, [])
        self.recorded.sessions.append(session)
        stream.send(["watch", prefix, since])
        if self._plan.lag and max_frames is not None and prefix in BUSY and self._chance.random() < 0.6:
            self._fall_behind(known)
            max_frames = FRAMES_OF_A_SLOW_SESSION
        frames = stream.frames()
        answer = next((frame for frame in frames if frame is not None), [True])
        assert answer == [True], answer
        for frame in frames:
            session.events += frame or []
            if max_frames is not None:
                max_frames -= 1
                if max_frames == 0 or (frame is None and self._knows_the_end()):
                    break
            elif self._final is not None and position(session) >= self._final:
                break
        stream.close()
        self._positions[prefix] = max(position(session), self._positions.get(prefix, -1))

    def _since(self, prefix: str, known: int) -> int | None:
        begin = self._chance.random()
        if begin < 0.1:
            return None
        if begin < 0.6 and self._positions.get(prefix, -1) >= 0:
            return self._positions[prefix]
        return max(0, known + self._chance.randint(-self._plan.behind, 100))

    def _fall_behind(self, start_version: int) -> None:
        """Read nothing until the daemon is ``lag`` versions ahead, or the last version is known."""
        while not self._knows_the_end():
            stream, version = connect(self._path)
            stream.close()
            if version >= start_version + self._plan.lag:
                return
            time.sleep(POLL_S)


def position(session: Session) -> int:
    """Return the version up to which the session is complete; -1 if that is not known."""
    is_resetting = False
    place = session.since if session.since is not None and session.since <= session.known else -1
    for kind, version, *_ in session.events:
        if kind == "reset":
            is_resetting, place = True, -1
        elif kind == "live":
            is_resetting, place = False, version
        elif kind == "change" and not is_resetting:
            place = version
    return place


def main(path: str, file: str, plan: str) -> None:
    """Watch, then write the records."""
    watcher = Watcher(path, msgspec.json.decode(plan, type=Plan))
    watcher.run()
    with open(file, "wb") as out:
        out.write(encode(watcher.recorded))


if __name__ == "__main__":
    main(*sys.argv[1:])
