"""``kv lock``: run a command while holding a lock.

While the command runs, signals are blocked and kv waits for them, one at a time. So kv knows of each where it comes
from: the terminal sends its signals to the command, too; any other sender means the command, and kv passes it on.
"""

import os
import signal

from kv.cli.context import Context, checked_key
from kv.cli.escape import show
from kv.cli.failures import UsageError
from kv.cli.parser import CommonOptions, Parser, set_completer
from kv.cli.processes import environment, exit_code_of, start
from kvd.protocol import exits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kv.api.locks import Lock

USAGE = "kv lock [OPTION]... NAME -- COMMAND [ARGUMENT]..."
EXAMPLES = """
kv lock backup -- ./backup.sh       one at a time, in the order in which they came
kv lock --timeout 10 backup -- ./backup.sh
                                    wait for ten seconds at most, then exit code 5
kv lock --no-wait backup -- ./backup.sh
                                    only if nobody holds it
kv lock -n backup                   who has it? exit code 5 unless it is free
"""
DETAILS = """
The exit code is the command's, 128 + N if signal N ended it. Whoever has waited longest is next, at once also if kv
is killed with -9 (a command that survives that runs on without the lock). Without --timeout it waits for ever.
KVD_LOCK_TOKEN in the environment is a number that rises from holder to holder: pass it on to whatever can refuse a
lower one than it has seen. SIGTERM, SIGHUP, SIGINT, SIGQUIT, SIGUSR1 and SIGUSR2 are passed on.

If the lock is lost meanwhile (the daemon was stopped, the time of --ttl is over, somebody deleted the key), that is
said on standard error, the command gets SIGTERM (not with --keep-running), and the exit code is 79. A lock NAME is
the keys that begin with lock/NAME/; the name itself has no slash.
"""
_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_AWAITED = (*_FORWARDED, signal.SIGCHLD)
_FROM_KERNEL = 0x80  # SI_KERNEL: a key pressed on the terminal
_CHECK_INTERVAL_S = 0.5  # between looks at the connection
_CHECKS_PER_REQUEST = 10  # every tenth time, the daemon is asked, too


class Options(CommonOptions):
    """The options of ``kv lock``."""

    ttl_s: float | None = None
    no_wait: bool = False
    keep_running: bool = False
    dry_run: bool = False


def arguments(parser: Parser) -> None:
    """The options of ``kv lock``."""
    parser.takes_command = True
    parser.operands("NAME", "the lock's name; the command stands behind '--'", "locks")
    set_completer(
        parser.add_argument(
            "--ttl", dest="ttl_s", metavar="DURATION", type=_ttl_s,
            help="hold it for so long at most, counted from when it is had",
        ),
        "durations",
    )  # fmt: skip
    parser.add_argument("--no-wait", action="store_true", help="do not wait if somebody else has it; exit code 5")
    parser.add_argument("--keep-running", action="store_true", help="let the command run on if the lock is lost")
    parser.add_argument(
        "-n",
        "--dry-run",
        action="store_true",
        help="show who has it and who waits, run nothing; exit code 5 unless it is free",
    )


def _ttl_s(text: str) -> float:
    from kv.cli.durations import duration_s

    return duration_s(text, "--ttl")


def run(context: Context, options: Options) -> int:
    """Run the command with the lock, and return its exit code."""
    name = _name(options.operands)
    if options.dry_run:
        return _rehearse(context, name)
    if not options.command:
        raise UsageError("which command? write 'kv lock NAME -- COMMAND'")
    limit_s = 0.0 if options.no_wait else options.timeout or None
    with context.connect(waits=True) as client:
        return _run_with(context, options, client.lock(name, ttl=options.ttl_s, timeout=limit_s))


def _name(operands: list[str]) -> str:
    if len(operands) != 1:
        raise UsageError("give one name, and the command after '--': kv lock NAME -- COMMAND")
    name = checked_key(operands[0])
    if "/" in name:
        raise UsageError(f"a lock's name has no slash, unlike {name!r}")
    return name


def _rehearse(context: Context, name: str) -> int:
    with context.connect() as client:
        contenders = sorted(client.scan(f"lock/{name}/"), key=lambda item: item.version)
    if not contenders:
        context.print(f"the lock {show(name)} is free")
    for place, item in enumerate(contenders):
        state = "waiting" if place else "held"
        context.print(f"{state} by {show(item.value or b'')}, since version {item.version}")
    return exits.SERVER_ERROR if contenders else exits.OK


def _run_with(context: Context, options: Options, lock: "Lock") -> int:
    from kv.errors import KvdError, LockLost, TimedOut

    token = lock.__enter__()
    failure: KvdError | None = None
    status, is_lost = exits.SERVER_ERROR, False
    try:
        status, is_lost = _run_command(context, options, lock, token)
    finally:
        try:
            lock.__exit__(None, None, None)
        except KvdError as error:
            failure = error
    if is_lost or isinstance(failure, LockLost):
        if not is_lost:
            context.warn(f"error: {failure}")
        return exits.LOCK_LOST
    if isinstance(failure, TimedOut):  # the end of the connection releases it as soon as the daemon looks
        context.warn(f"the lock is released late: {failure.message}")
    elif failure is not None:
        context.warn(f"error: the lock was lost at the end: {failure.message}")
        return exits.LOCK_LOST
    return status


def _run_command(context: Context, options: Options, lock: "Lock", token: int) -> tuple[int, bool]:
    """Run the command to its end; return its exit code, and whether the lock was lost meanwhile."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
    try:
        process = start(options.command, environment(options, KVD_LOCK_TOKEN=str(token)))
        is_lost = _attend(context, lock, process, options.keep_running)
        return exit_code_of(process), is_lost
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _AWAITED)


def _attend(context: Context, lock: "Lock", process: int, keep_running: bool) -> bool:
    """Pass signals on until the process has ended; return whether the lock was lost."""
    is_lost, checks = False, 0
    while not _ended(process):
        received = signal.sigtimedwait(_AWAITED, _CHECK_INTERVAL_S)
        if received is not None:
            _pass_on(received, process)
            continue
        checks += 1
        if not is_lost and not _is_held(lock, ask=checks % _CHECKS_PER_REQUEST == 0):
            is_lost = True
            context.warn(
                f"error: the lock {lock.name!r} was lost{'' if keep_running else '; the command gets SIGTERM'}"
            )
            if not keep_running:
                os.kill(process, signal.SIGTERM)
    return is_lost


def _ended(process: int) -> bool:
    """Whether the process has ended. It stays a zombie, so no other process can get its number."""
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _pass_on(received: signal.struct_siginfo, process: int) -> None:
    from_terminal = received.si_code == _FROM_KERNEL
    if received.si_signo in _FORWARDED and not from_terminal:
        os.kill(process, received.si_signo)


def _is_held(lock: "Lock", *, ask: bool) -> bool:
    from kv.errors import KvdError, LockLost

    if not lock.held:
        return False
    if ask:
        try:
            lock.check()
        except LockLost:
            return False
        except KvdError:
            pass  # no answer proves nothing; the end of the connection would
    return True
