"""``kv checkpoint``: have the daemon write its values to one file now, so that the next start is short."""

import time

from kv.cli.context import Context
from kv.cli.failures import CommandFailed
from kv.cli.parser import CommonOptions, Parser
from kvd.protocol import exits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kv.blocking.client import Client

USAGE = "kv checkpoint [OPTION]..."
EXAMPLES = """
kv checkpoint                       Checkpoint written.
kv checkpoint --timeout 300         it may take that long
"""
DETAILS = """
The daemon writes checkpoints by itself when its log has grown; one more makes the next start shorter, and lets go of
the log before it, except for what the history needs. Writes go on meanwhile. --timeout is how long to wait for the end
(default: 60 seconds here); the daemon goes on when it is over.
"""
_TIMEOUT_S = 60.0
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.01, 0.5


class Options(CommonOptions):
    """``kv checkpoint`` has no options of its own."""


def arguments(parser: Parser) -> None:
    """``kv checkpoint`` has no options of its own."""


def run(context: Context, options: Options) -> int:
    """Ask for a checkpoint, wait for it, and print ``Checkpoint written.``"""
    timeout_s = options.timeout_s(_TIMEOUT_S)
    with context.connect() as client:
        failures = client.metrics().get("checkpoint_failures", 0)
        target = client.checkpoint()
        version = _wait(client, target, failures, timeout_s)
    context.print("Checkpoint written.")
    context.note(f"version {version}")
    return exits.OK


def _wait(client: "Client", target: int, failures: int, timeout_s: float | None) -> int:
    """Wait until the daemon has a checkpoint of the version ``target``; return its version. Raises CommandFailed."""
    end = None if timeout_s is None else time.monotonic() + timeout_s
    pause_s = _FIRST_PAUSE_S
    while True:
        metrics = client.metrics()
        if metrics["checkpoint_version"] >= target:
            return metrics["checkpoint_version"]
        if metrics["checkpoint_failures"] > failures:
            raise CommandFailed("the checkpoint could not be written; the daemon's log says why", exits.IO_ERROR)
        if end is not None and time.monotonic() >= end:
            raise CommandFailed(
                f"the checkpoint was not complete within {timeout_s:g} seconds; the daemon goes on with it"
            )
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _MAX_PAUSE_S)
