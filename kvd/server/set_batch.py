"""Sets out of many connections, made together at the end of a turn of the loop.

One set a frame costs mostly what is around it: the clock, the history to be dropped, room in the commit log, a record
and a group of its own. When many connections send one each, the loop reads all of them in one turn, and so they are
put aside and made in one go, as if they had come in one frame:

        read  s1 [set] ─┐  read s2 [set] ─┐  read s3 [set] ─┐           s1 ◀─ version 7
              put aside ┴─────────────────┴─────────────────┴─▶ made ─▶ s2 ◀─ version 8
                                                                        s3 ◀─ version 9

Each stays a commit of its own, in the order in which they came. Before any other request runs, what was put aside is
made; so the order of everything is that in which it was read, on each connection and among them. Who is alone, the one
that also sent the last set, is not kept waiting.
"""

import asyncio
from itertools import chain, groupby
from typing import TYPE_CHECKING

from kvd.engine.durability import NO_WAIT, LogPosition
from kvd.protocol.frames import frame
from kvd.protocol.messages import AnyRequest, Set, encode_replies
from kvd.store.authors import Author

if TYPE_CHECKING:
    from kvd.requests.executor import Commands
    from kvd.server.session import Session

# No more requests are put aside than this: as many as one turn of the loop may take.
MAX_REQUESTS = 1024

Waiting = tuple["Session", list[Set], int]  # the frame's bytes
Made = tuple[list[Waiting], list[int], LogPosition]


class SetBatcher:
    """What was put aside during this turn of the loop."""

    def __init__(self, commands: "Commands", loop: asyncio.AbstractEventLoop) -> None:
        self._commands = commands
        self._loop = loop
        self._waiting: list[Waiting] = []
        self._requests = 0
        self._is_due = False
        self._last: Session | None = None  # who sent the last set
        commands.before_others = self.make

    @staticmethod
    def takes(requests: list[AnyRequest]) -> bool:
        """Whether these may be put aside: sets only, as durable as all are, and few."""
        if len(requests) == 1:
            return type(request := requests[0]) is Set and (request.how is None or request.how.sync is None)
        if len(requests) > MAX_REQUESTS or set(map(type, requests)) != {Set}:
            return False
        hows = [request.how for request in requests]  # type: ignore[union-attr]
        return not any(hows) or all(how is None or how.sync is None for how in hows)

    def enqueue(self, session: "Session", requests: list[Set], frame_bytes: int) -> None:
        """Make these sets of ``session`` at the end of this turn; it is sent its reply then, or once it may leave."""
        durability = self._commands.durability
        is_occupied = durability is not None and durability.is_occupied
        grant = session.peer.grant
        if grant is not None and not self._commands.allows(requests, grant):
            session.run(requests, frame_bytes)
            return
        if session is self._last and not self._waiting and not is_occupied:
            session.run(requests, frame_bytes)
            return
        self._last = session
        self._waiting.append((session, requests, frame_bytes))
        self._requests += len(requests)
        if self._requests >= MAX_REQUESTS:
            self.make()
        elif durability is not None and is_occupied:
            # What is made now has to wait for the next sync anyway, and that makes it first.
            durability.expect(self._requests, self.make)
        elif not self._is_due:
            self._is_due = True
            self._loop.call_soon(self.make)

    def make(self) -> None:
        """Make all that was put aside, and answer."""
        self._is_due = False
        if not self._waiting:
            return
        waiting, self._waiting, self._requests = self._waiting, [], 0
        made: list[Made] = []
        for _, group in groupby(waiting, _author):
            frames = list(group)
            done = self._made_together(frames)
            if done is not None:
                made.append((frames, *done))
            else:
                self._answer(made)
                made = []
                for session, requests, frame_bytes in frames:
                    session.run(requests, frame_bytes)
        self._answer(made)

    def _made_together(self, frames: list[Waiting]) -> tuple[list[int], LogPosition] | None:
        """Frames of one author; their versions and what the replies have to wait for, None if nothing was done."""
        requests = list(chain.from_iterable(requests for _, requests, _ in frames))
        try:
            return self._commands.set_together(requests, frames[0][0].peer)
        except Exception:
            for session, _, _ in frames:
                session.fail_internal()
            frames.clear()
            return [], NO_WAIT

    def _answer(self, made: "list[Made]") -> None:
        """Send the replies, or have them held; what can be written to the log at once need not hold any."""
        durability = self._commands.durability
        if made and durability is not None:
            durability.write_at_once()
        for frames, versions, needs in made:
            at = 0
            for session, requests, _ in frames:
                end = at + len(requests)
                session.reply(frame(encode_replies(versions[at:end])), needs)
                at = end


def _author(waiting: Waiting) -> Author:
    return waiting[0].peer.author
