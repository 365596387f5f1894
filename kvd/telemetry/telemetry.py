"""All parts of the telemetry in one object, which the rest of the daemon uses."""

from collections.abc import Callable
from typing import NamedTuple

from kvd.telemetry.hot_keys import HotKeys
from kvd.telemetry.metrics import LoopLag, ServerMetrics
from kvd.telemetry.slow_log import SlowLog


class Telemetry(NamedTuple):
    """What is counted, timed and sampled. ``count_connections`` returns how many are open."""

    metrics: ServerMetrics
    slow_log: SlowLog
    hot_keys: HotKeys
    loop_lag: LoopLag
    count_connections: Callable[[], int]
