"""``kv shutdown``: make the daemon stop, and return when its process has ended."""

import os

from kv.cli.context import Context
from kv.cli.failures import CommandFailed
from kv.cli.output import warn
from kv.cli.parser import CommonOptions, Parser
from kvd.protocol import exits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kv.blocking.client import Client

USAGE = "kv shutdown [OPTION]..."
EXAMPLES = """
kv shutdown                         Kvd stopped.
kv shutdown --timeout 60            it may take that long to answer what it has read
"""
DETAILS = """
The daemon answers the requests that it has read, removes its socket and ends. --timeout is how long to wait for that
(default: 30 seconds here). A daemon that systemd started by its socket comes back with the next client: use
'systemctl stop kvd.socket kvd.service' there.
"""
_TIMEOUT_S = 30.0


class Options(CommonOptions):
    """``kv shutdown`` has no options of its own."""


def arguments(parser: Parser) -> None:
    """``kv shutdown`` has no options of its own."""


def run(context: Context, options: Options) -> int:
    """Stop the daemon, and print ``Kvd stopped.``"""
    timeout_s = options.timeout_s(_TIMEOUT_S)
    with context.connect(_TIMEOUT_S) as client:
        status = client.status()
        process = _watch(client, status)
        pid = client.shutdown()
        is_gone = _wait_for_process(process, timeout_s) if process is not None else client.wait_for_end(timeout_s)
    if not is_gone:
        raise CommandFailed(f"kvd (pid {pid}) is still stopping after {timeout_s:g} seconds; see its log")
    context.print("Kvd stopped.")
    if status.get("activated") and not options.quiet:
        warn("the next client starts it again; to stop it for good: systemctl stop kvd.socket kvd.service")
    return exits.OK


def _watch(client: "Client", status: "dict[str, str | int]") -> int | None:
    """Return a descriptor that becomes readable when the daemon's process ends.

    None if the process cannot be known from here, as from another pid namespace; then the caller waits for the end of
    the connection. The descriptor is opened while the connection proves that the process lives, so its pid cannot
    belong to another process.
    """
    pid = client.server_pid()
    if status.get("activated") and pid != status.get("pid"):
        return None  # the kernel names the process that listened first, which was systemd
    try:
        return os.pidfd_open(pid) if pid else None
    except OSError:
        return None


def _wait_for_process(descriptor: int, timeout_s: float | None) -> bool:
    import select

    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))
