"""The text that Prometheus reads, if the library that renders it is installed.

The library is loaded at the start (30 ms), because later all clients would wait for that. The text is rendered once a
second at most: rendering takes half a millisecond, and any client may ask. docs/metrics.md explains each figure.
"""

from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvd.telemetry.figures import Figures

Render = Callable[["Figures"], bytes]
# The media type of the text, as HTTP names it.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# A text is given out for so long.
MAX_AGE_S = 1.0


class Exposition:
    """The text with the figures that ``measure`` returns, by ``render`` if there is one; ``now`` returns seconds."""

    def __init__(
        self, measure: "Callable[[], Figures]", render: "Render | None", now: Callable[[], float] = monotonic
    ) -> None:
        self._measure = measure
        self._render = render
        self._now = now
        self._text = ""
        self._good_until = 0.0

    def text(self) -> str | None:
        """Return the text, at most MAX_AGE_S old; None without the library."""
        if self._render is None:
            return None
        now = self._now()
        if now >= self._good_until:
            self._text = self._render(self._measure()).decode()
            self._good_until = now + MAX_AGE_S
        return self._text


def load_renderer() -> "Render | None":
    """Return the function that renders the text; None without the library."""
    try:
        from kvd.telemetry.prometheus import render_prometheus
    except ModuleNotFoundError as error:
        if error.name != "prometheus_client":
            raise
        return None
    return render_prometheus
