"""A bar on stderr while something takes long: only on a terminal, and only if it takes longer than a moment."""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

# What is over sooner needs no bar.
_DELAY_S = 0.5


class Bar:
    """Shows nothing; what ``bar`` gives where there is no terminal."""

    is_visible = False

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def reach(self, done: int, total: int) -> None:
        """So much is done, of so much in all; 0 if that is not known."""

    def close(self) -> None:
        """It is over."""


class _Shown(Bar):
    """A bar drawn by tqdm."""

    is_visible = True

    def __init__(self, unit: str, label: str) -> None:
        from tqdm import tqdm

        # An argument would override tqdm's own variable, which a test sets to see the bar at once.
        delay_s = 0.0 if os.environ.get("TQDM_DELAY") == "0" else _DELAY_S
        self._bar = tqdm(desc=label, unit=unit, unit_scale=True, unit_divisor=1000, delay=delay_s, leave=False)

    def reach(self, done: int, total: int) -> None:
        self._bar.total = max(total, done) or None
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        self._bar.close()


def bar(unit: str, label: str, *, quiet: bool = False) -> Bar:
    """``with bar("B", "restoring") as shown:``, and ``shown.reach(done, total)`` now and then."""
    return Bar() if quiet or not os.isatty(2) else _Shown(unit, label)
