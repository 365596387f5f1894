"""The text that Prometheus reads, if the library that renders it is installed.

The library is loaded at the start where HTTP is spoken, which scrapers do, and else when a client first asks. What each
figure means stands in docs/metrics.md.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvd.telemetry.figures import Figures

# The media type of the text, as HTTP names it.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def load() -> "Callable[[Figures], bytes] | None":
    """Load the library, some 30 ms the first time. Return what renders the text, or None without the library."""
    try:
        from kvd.telemetry.prometheus import render_prometheus
    except ModuleNotFoundError as error:
        if error.name != "prometheus_client":
            raise
        return None
    return render_prometheus
