"""One client in several threads, in forked processes, and interrupted in the middle of a call."""

import gc
import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

import pytest

import kv
from tests.harness.scale import SCALE
from tests.harness.waiting import DEADLINE_S, eventually

if TYPE_CHECKING:
    from tests.harness.daemon import Daemon
    from tests.harness.scripted_server import Line, ScriptedServer

    Scripted = Callable[..., ScriptedServer]
THREADS = 8
CALLS = max(100, int(500 * SCALE))
FORKS = max(50, int(200 * SCALE))
INTERRUPTS = max(1_000, int(3_000 * SCALE))
TRACED = tuple(
    f"kv/{name}.py"
    for name in (
        "blocking/client", "methods", "blocking/connection", "wire/protocol", "wire/exchange", "blocking/stream",
    )
)  # fmt: skip


def use(db: kv.Client, name: str, calls: int) -> None:
    """Make calls whose results would differ from those of any other caller."""
    for number in range(calls):
        key, value = f"{name}:{number % 7}", f"{name}={number}".encode()
        db.set(key, value)
        assert db.get(key) == value
        assert db.get_many([key, name]) == {key: value, name: None}


@pytest.fixture
def db(shared_daemon: "Daemon", connect: Callable[..., kv.Client]) -> kv.Client:
    return connect(shared_daemon.address, timeout=DEADLINE_S)


def test_threads_share_a_client_and_replies_are_never_mixed_up(db: kv.Client) -> None:
    failures: list[BaseException] = []
    finished: list[int] = []

    def run(name: str) -> None:
        try:
            use(db, name, CALLS)
            finished.append(CALLS)
        except BaseException as error:
            failures.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # so that the threads interleave
    try:
        threads = [threading.Thread(target=run, args=(f"thread{number}",)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10 * DEADLINE_S)
    finally:
        sys.setswitchinterval(interval)
    assert failures == []
    assert finished == [CALLS] * THREADS


def in_child(work: Callable[[], object]) -> int:
    """Fork, and return the child's process id. The child exits with status 0 if ``work`` returns."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return pid


def test_parent_and_child_can_both_use_a_client_after_a_fork(db: kv.Client) -> None:
    db.ping()
    for number in range(FORKS):
        child = in_child(lambda number=number: use(db, f"child{number}", 3))  # type: ignore[misc]
        use(db, f"parent{number}", 3)
        assert os.waitpid(child, 0)[1] == 0


def test_a_child_and_its_child_each_have_a_connection_of_their_own(db: kv.Client) -> None:
    def child() -> None:
        use(db, "child", 2)
        grandchild = in_child(lambda: use(db, "grandchild", 2))
        use(db, "child again", 2)
        assert os.waitpid(grandchild, 0)[1] == 0

    db.ping()
    pid = in_child(child)
    use(db, "parent", 20)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_child_forked_during_the_call_of_another_thread_does_not_wait(
    scripted: "Scripted", connect: Callable[..., kv.Client]
) -> None:
    """The child inherits no lock that a thread of the parent holds."""
    received = threading.Event()

    def slow(line: "Line") -> None:
        line.request()
        received.set()
        server.release.wait(DEADLINE_S)
        line.reply(b"slow")

    def serve(line: "Line") -> None:
        while line.request() is not None:
            line.reply(b"child")

    server = scripted(slow, serve)
    db = connect(server.address, timeout=DEADLINE_S)
    values: list[bytes | None] = []
    thread = threading.Thread(target=lambda: values.append(db.get("a")))
    thread.start()
    assert received.wait(DEADLINE_S)

    def child() -> None:
        assert db.get("a") == b"child"

    assert os.waitpid(in_child(child), 0)[1] == 0
    server.release.set()
    thread.join(DEADLINE_S)
    assert values == [b"slow"]


def test_a_child_closes_its_copy_of_the_parents_connection(db: kv.Client) -> None:
    """Otherwise the daemon would not see the parent close its own."""
    db.ping()
    stream = db._current_connection()._stream
    assert stream is not None
    inherited = stream._socket.fileno()
    name = os.readlink(f"/proc/self/fd/{inherited}")

    def child() -> None:
        db.ping()
        links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        assert name not in [os.readlink(link) for link in links if os.path.lexists(link)]

    assert os.waitpid(in_child(child), 0)[1] == 0
    db.ping()
    assert db._current_connection()._stream is stream


# ---------------------------------------------------------------------- interrupts


def test_an_interrupted_call_does_not_shift_later_replies(
    scripted: "Scripted", connect: Callable[..., kv.Client]
) -> None:
    interrupted = threading.Event()

    def interrupt_then_reply(line: "Line") -> None:
        line.request()
        # The client waits for the reply. Interrupted while it still sends, it would rightly give up the connection.
        eventually(lambda: not db._current_connection()._torn, "for the client to wait")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        interrupted.wait(DEADLINE_S)
        line.reply(b"wrong")
        while (requests := line.request()) is not None:
            line.reply(requests[0][1].encode())

    server = scripted(interrupt_then_reply)
    db = connect(server.address, timeout=DEADLINE_S)
    with pytest.raises(KeyboardInterrupt):
        db.get("a")
    interrupted.set()
    assert [db.get(key) for key in "bcd"] == [b"b", b"c", b"d"]
    assert server.connections == 1, "ephemeral keys and locks depend on it"


@pytest.mark.parametrize("near_cache", [False, True])
@pytest.mark.parametrize(
    "call",
    [
        lambda db: db.get("b"),
        lambda db: db.set("b", b""),
        lambda db: list(db.scan()),
        lambda db: db.server_pid(),
        lambda db: db.close(),
    ],
    ids=["get", "set", "scan", "server_pid", "close"],
)
def test_a_signal_handler_that_uses_the_client_it_interrupts_is_told_at_once(
    scripted: "Scripted", near_cache: bool, call: Callable[[kv.Client], object]
) -> None:
    """It would wait for a call that waits for it."""
    errors: list[BaseException] = []
    handled = threading.Event()

    def handler(*_: object) -> None:
        try:
            call(db)
        except BaseException as error:
            errors.append(error)
        handled.set()

    def interrupt_then_reply(line: "Line") -> None:
        for (request,) in iter(line.request, None):
            if request in (["get", "a"], ["fetch", ["a"]]):
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
                assert handled.wait(DEADLINE_S)
            line.reply(b"1" if request[0] == "get" else [[b"1", 1, None, None, None]])

    server = scripted(interrupt_then_reply)
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with kv.connect(server.address, timeout=DEADLINE_S, near_cache=near_cache) as db:
            assert db.get("other") == b"1"
            assert db.get("a") == b"1", "the call itself goes on"
            assert db.get("c") == b"1", "and so does the client"
    finally:
        signal.signal(signal.SIGUSR1, before)
    (error,) = errors
    assert isinstance(error, RuntimeError)
    assert "already in a call of this thread" in str(error)


def test_calls_interrupted_by_signals_at_any_moment_shift_no_reply_and_leave_no_lock(db: kv.Client) -> None:
    """Thousands of real signals, at random moments of a call."""
    generator = random.Random(7)  # noqa: S311  # a seed, so that the test can be repeated
    names = [f"signal:{number}" for number in range(50)]
    db.set_many({name: name.encode() for name in names})
    stream = db._current_connection()._stream
    interrupted = reconnected = 0
    armed = False

    def interrupt(*_: object) -> None:
        # If the kernel gives the signal to another thread, Python calls this handler late: after the call.
        nonlocal armed
        if armed:
            armed = False
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    gc.disable()  # an interrupt in a callback of the collector would be lost
    try:
        while interrupted < INTERRUPTS:
            name = generator.choice(names)
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, generator.uniform(1e-6, 2e-4))
                for _ in range(20):
                    assert db.get(name) == name.encode()
                    assert db.set(name, name.encode()) > 0
                signal.setitimer(signal.ITIMER_REAL, 0)
                armed = False
            except KeyboardInterrupt:
                interrupted += 1
            lock = db._current_connection()._lock
            assert not lock.locked(), "no later call waits for it"
            assert db.get(name) == name.encode()
            reconnected += db._current_connection()._stream is not stream
            stream = db._current_connection()._stream
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.enable()
    assert db.get_many(names) == {name: name.encode() for name in names}
    assert reconnected < interrupted / 2, "most interrupts cost no connection"


def test_a_call_interrupted_at_any_line_does_not_shift_later_replies(db: kv.Client) -> None:
    """An interrupt at each line of the client's code, one after the other."""
    names = [f"interrupt:{number}" for number in range(4)]
    db.set_many({name: name.encode() for name in names})
    interrupted = 0
    while True:
        lines_left = interrupted
        db.get(names[0])

        def trace(frame: FrameType, event: str, _: object) -> Any:  # noqa: ANN401
            nonlocal lines_left
            # Not in deliver(): a trace can raise where Python looks for no signals, and would leave the lock held.
            if not frame.f_code.co_filename.endswith(TRACED) or frame.f_code.co_name == "deliver":
                return None
            if event == "line":
                if lines_left == 0:
                    sys.settrace(None)
                    raise KeyboardInterrupt
                lines_left -= 1
            return trace

        sys.settrace(trace)
        try:
            assert db.get(names[1]) == names[1].encode()
        except KeyboardInterrupt:
            interrupted += 1
        else:
            break
        finally:
            sys.settrace(None)
        assert [db.get(name) for name in names] == [name.encode() for name in names]
    assert interrupted > 20, "it went through a whole call"
