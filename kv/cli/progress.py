"""A bar on stderr while something takes long: only on a terminal, and only after half a second."""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from kvd.service.progress import ProgressBar

_DELAY_S = 0.5


class _HiddenBar:
    """Shows nothing: standard error is no terminal, or --quiet."""

    is_visible = False

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *error: object) -> None:
        """End nothing."""

    def update(self, done: int, total: int) -> None:
        """Show nothing."""


class _TerminalBar:
    """A bar that tqdm draws."""

    is_visible = True

    def __init__(self, unit: str, label: str) -> None:
        from tqdm import tqdm

        # An argument would override tqdm's own variable, which a test sets to see the bar at once.
        delay_s = 0.0 if os.environ.get("TQDM_DELAY") == "0" else _DELAY_S
        self._bar = tqdm(desc=label, unit=unit, unit_scale=True, unit_divisor=1000, delay=delay_s, leave=False)

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def update(self, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` are done; 0 if the total is not known."""
        self._bar.total = max(total, done) or None
        self._bar.update(done - self._bar.n)


def progress_bar(unit: str, label: str, *, quiet: bool = False) -> "ProgressBar":
    """A bar on standard error, if that is a terminal."""
    return _HiddenBar() if quiet or not os.isatty(2) else _TerminalBar(unit, label)
