"""The text that Prometheus reads, if the library that renders it is installed.

With an HTTP listener the library is loaded at the start, because scrapers use HTTP; otherwise when a client first asks.
docs/metrics.md explains each figure.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvd.telemetry.figures import Figures

# The media type of the text, as HTTP names it.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def load() -> "Callable[[Figures], bytes] | None":
    """Load the library (30 ms the first time). Return the function that renders the text; None without the library."""
    try:
        from kvd.telemetry.prometheus import render_prometheus
    except ModuleNotFoundError as error:
        if error.name != "prometheus_client":
            raise
        return None
    return render_prometheus
