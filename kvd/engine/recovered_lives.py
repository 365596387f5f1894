"""The lives of keys while the log is read: only how they stand at the end counts."""

from collections.abc import Iterable


class ReplayedExpiry:
    """Deadlines are wall-clock µs since the epoch."""

    def __init__(self) -> None:
        # key → (deadline, how long it was from when it was written; None if that is not known)
        self.deadlines: dict[str, tuple[int, int | None]] = {}
        self.ephemeral: set[str] = set()

    def __bool__(self) -> bool:
        """Whether any key has an end."""
        return bool(self.deadlines or self.ephemeral)

    def written(
        self, keys: Iterable[str], deadlines: dict[str, int] | None, ephemeral: list[str] | None, time: int | None
    ) -> None:
        """``keys`` were written, or deleted, at ``time``."""
        if self.deadlines:
            for key in self.deadlines.keys() & keys:
                del self.deadlines[key]
        if self.ephemeral:
            self.ephemeral.difference_update(keys)
        for key, deadline in (deadlines or {}).items():
            self.deadlines[key] = deadline, None if time is None else max(0, deadline - time)
        self.ephemeral.update(ephemeral or ())
