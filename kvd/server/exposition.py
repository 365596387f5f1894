"""The measures as Prometheus reads them, in its text format; the library for it is loaded when somebody first asks.

What each of them means stands in docs/metrics.md.
"""

from typing import TYPE_CHECKING

from kvd.server.refusals import Refusal

if TYPE_CHECKING:
    from kvd.server.commands import Commands

# Of `exposition`, as HTTP names it.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def exposition(commands: "Commands") -> bytes:
    """All measures in the text format, version 0.0.4. Raises Refusal where prometheus-client is not installed.

    The first call loads the library, which takes some 30 ms.
    """
    try:
        from kvd.server import prometheus
    except ModuleNotFoundError as error:
        if error.name != "prometheus_client":
            raise
        text = "the daemon's installation has no prometheus-client; install kvd[prometheus] and restart it"
        raise Refusal("bad_request", text) from None
    lag = commands.measures.loop_lag
    if lag is not None:
        lag.watch()
    return prometheus.generate(commands)
