"""The measures as Prometheus reads them, in its text format.

The library for it is loaded at the start where HTTP is spoken, which scrapers do, and else when somebody first asks.

What each of them means stands in docs/metrics.md.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from kvd.requests.errors import RequestError

if TYPE_CHECKING:
    from kvd.requests.executor import Commands

# Of `exposition`, as HTTP names it.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def load() -> "Callable[[Commands], bytes] | None":
    """Load the library, for some 30 ms the first time; what makes the text, None where it is not installed."""
    try:
        from kvd.telemetry.prometheus import generate
    except ModuleNotFoundError as error:
        if error.name != "prometheus_client":
            raise
        return None
    return generate


def exposition(commands: "Commands") -> bytes:
    """All measures in the text format, version 0.0.4. Raises Refusal where prometheus-client is not installed."""
    generate = load()
    if generate is None:
        text = "the daemon's installation has no prometheus-client; install kvd[prometheus] and restart it"
        raise RequestError("bad_request", text)
    lag = commands.measures.loop_lag
    if lag is not None:
        lag.watch()
    return generate(commands)
