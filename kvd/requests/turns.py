"""How long one turn of the loop may take, all connections together; and what waits for a later turn.

Work that may be long is a generator: it yields wherever other clients may have their turn, and returns its result.
``Turns.advance`` runs it for a slice of measured time; what is unfinished then goes on in a later turn:

        a turn   [input of each ready connection, frames of measured time]   [steps that wait, in order]
                  over TURN_NS: large input waits, too ──────────────────▶    up to TURN_NS, then the next turn

So a turn is bounded whatever the number of connections, and a small frame never waits for the large ones of others.
A generator yields at least every PIECE_US or so of its work; what lies between two yields cannot be interrupted.
"""

from collections import deque
from collections.abc import Callable
from time import perf_counter_ns
from typing import TypeVar

from kvd.store.steps import Steps, run_to_end

__all__ = ["Steps", "Turns", "run_to_end"]

Result = TypeVar("Result")

# One connection works for about this long before others have their turn.
SLICE_NS = 1_000_000
# In one turn, waiting steps run for about this long, and so do the frames that were just read.
TURN_NS = 4_000_000
# While a turn is over, only input of at most this size is still answered at once.
LIGHT_BYTES = 256


class Turns:
    """The time that is left in this turn, and the steps that wait.

    ``spent_ns``: the time that frames took lately; the caller that adds to it calls ``note`` when it reaches
    ``turn_ns``. ``is_over``: whether this turn has no time left for large input.
    """

    __slots__ = ("_call_soon", "_is_due", "_waiting", "clock", "is_over", "spent_ns", "turn_ns")

    def __init__(
        self,
        call_soon: Callable[[Callable[[], None]], object],
        clock: Callable[[], int] = perf_counter_ns,
        turn_ns: int = TURN_NS,
    ) -> None:
        self._call_soon = call_soon
        self._waiting: deque[Callable[[], None]] = deque()
        self._is_due = False  # whether _run will be called at the end of this turn
        self.clock = clock
        self.turn_ns = turn_ns
        self.spent_ns = 0
        self.is_over = False

    def note(self) -> None:
        """Note that ``spent_ns`` has reached ``turn_ns``.

        It may be the time of many turns, so the first time only the end of this one is awaited. That saves a call in
        each turn; and a turn has at most twice its time.
        """
        self.spent_ns = 0
        if self._is_due:
            self.is_over = True
        else:
            self._wake()

    def add(self, step: Callable[[], None]) -> None:
        """Call ``step``, which takes about a slice, in a later turn: after the steps that wait already."""
        self._waiting.append(step)
        if not self._is_due:
            self._wake()

    def advance(self, work: Steps[Result]) -> tuple[bool, Result | None]:
        """Run ``work`` for about a slice. Return whether it is finished, and its result."""
        began_ns = self.clock()
        try:
            while True:
                next(work)
                if self.clock() - began_ns >= SLICE_NS:
                    return False, None
        except StopIteration as end:
            return True, end.value
        finally:
            self.spent_ns += self.clock() - began_ns
            if self.spent_ns >= self.turn_ns:
                self.note()

    def _wake(self) -> None:
        self._is_due = True
        self._call_soon(self._run)

    def _run(self) -> None:
        """Begin a turn: run some of the steps that wait, each at most once."""
        self.spent_ns = 0
        self.is_over = False  # _is_due stays True: what exceeds the time now is of this turn
        waiting, ends_ns = self._waiting, self.clock() + self.turn_ns
        try:
            for _ in range(len(waiting)):
                waiting.popleft()()
                if self.clock() >= ends_ns:
                    break
        finally:
            self.spent_ns = 0
            self.is_over = self._is_due = False
            if waiting:
                self._wake()
