"""Exactly once: the answers to recent writes that carried an idempotency id.

A client that sends a write and loses the connection cannot know whether the write has committed. So it gives the write
an id of 16 random bytes, and sends it again with the same id. If the write has committed, the first answer is given
again and nothing is done. The cache is a queue of bounded length. To distinguish a write that never arrived from one
that was forgotten, a write also says *since* which version its id has existed:

        forgotten ────────┤ remembered: id a → answer at 12, id b → answer at 15
        versions  … 8 9 10│11 12 13 14 15
                     ▲                ▲
             since = 9: unknown     since = 13: certainly not committed, so it may run

Only commits are remembered. (The idea is that of RIFL: C. Lee et al., *Implementing Linearizability at Large
Scale and Low Latency*, SOSP 2015, with a version in place of leases.)
"""

from collections import deque
from collections.abc import Hashable

from kvd.store.errors import OutcomeUnknown

# An answer with more elements than this, one for each of many keys, counts as several answers.
_SHORT_ANSWER = 16


class IdempotencyCache:
    """Answers to committed writes by (scope, id); the scope is the user that chose the id.

    ``limit`` is the number of answers that are remembered, fewer if some are long.
    """

    __slots__ = ("_answers", "_forgotten", "_order", "_weight", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._weight = 0
        self._answers: dict[tuple[Hashable, bytes], object] = {}
        self._order: deque[tuple[int, tuple[Hashable, bytes]]] = deque()
        self._forgotten = 0  # the newest version at which a forgotten id had committed

    def __len__(self) -> int:
        return len(self._order)

    def lookup(self, scope: Hashable, id_: bytes, since: int | None, version: int) -> object | None:
        """Return the answer to a write with this id; None if it has certainly not committed, or if ``since`` is None.

        ``version`` is the store's. Raises OutcomeUnknown.
        """
        answer = self._answers.get((scope, id_))
        if answer is None and since is not None and not self._forgotten <= since <= version:
            raise OutcomeUnknown(version)
        return answer

    def forget_through(self, version: int) -> None:
        """Note that ids of commits up to ``version`` are not remembered."""
        self._forgotten = max(self._forgotten, version)

    def remember(self, scope: Hashable, id_: bytes, version: int, answer: object) -> None:
        """Remember that a write with this id has committed at ``version``."""
        key = (scope, id_)
        self._answers[key] = answer
        self._order.append((version, key))
        self._weight += _weight_of(answer)
        while self._weight > self.limit:
            forgotten, oldest = self._order.popleft()
            self.forget_through(forgotten)
            self._weight -= _weight_of(self._answers.pop(oldest))


def _weight_of(answer: object) -> int:
    return 1 + len(answer) // _SHORT_ANSWER if isinstance(answer, list) else 1
