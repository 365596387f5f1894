"""Which event sources are woken when there are commits that may be shown."""

from collections.abc import Callable


class Wakeups:
    """A callback for each source that waits for commits. ``wakers`` is empty while no client watches."""

    __slots__ = ("wakers",)

    def __init__(self) -> None:
        self.wakers: dict[object, Callable[[], None]] = {}

    def add(self, source: object, wake: Callable[[], None]) -> None:
        """Call ``wake`` after each commit, once the commit may be shown."""
        self.wakers[source] = wake

    def remove(self, source: object) -> None:
        """Wake ``source`` no more."""
        self.wakers.pop(source, None)

    def wake(self) -> None:
        """Wake every source."""
        for wake in self.wakers.values():
            wake()
