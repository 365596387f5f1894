"""One client in several threads, in forked processes, and interrupted in the middle of a call."""

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
from tests.harness.waiting import DEADLINE_S

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
        "blocking/client", "api/methods", "blocking/connection", "wire/protocol", "wire/exchange", "blocking/stream",
    )
)  # fmt: skip


def works(db: kv.Client, name: str, calls: int) -> None:
    """Calls whose answers would show if they were somebody else's."""
    for number in range(calls):
        key, value = f"{name}:{number % 7}", f"{name}={number}".encode()
        db.set(key, value)
        assert db.get(key) == value
        assert db.get_many([key, name]) == {key: value, name: None}


@pytest.fixture
def db(shared_daemon: "Daemon") -> kv.Client:
    return kv.connect(shared_daemon.address, timeout=DEADLINE_S)


def test_threads_share_a_client_and_answers_are_never_mixed(db: kv.Client) -> None:
    failures: list[BaseException] = []
    done: list[int] = []

    def run(name: str) -> None:
        try:
            works(db, name, CALLS)
            done.append(CALLS)
        except BaseException as error:
            failures.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # so that they get into each other's way
    try:
        threads = [threading.Thread(target=run, args=(f"thread{number}",)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10 * DEADLINE_S)
    finally:
        sys.setswitchinterval(interval)
    assert failures == []
    assert done == [CALLS] * THREADS


def in_child(work: Callable[[], object]) -> int:
    """Fork; the child's id. It ends with status 0 if ``work`` returns."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return pid


def test_parent_and_child_both_go_on_using_a_client(db: kv.Client) -> None:
    db.ping()
    for number in range(FORKS):
        child = in_child(lambda number=number: works(db, f"child{number}", 3))  # type: ignore[misc]
        works(db, f"parent{number}", 3)
        assert os.waitpid(child, 0)[1] == 0


def test_a_child_and_its_child_each_have_a_connection_of_their_own(db: kv.Client) -> None:
    def child() -> None:
        works(db, "child", 2)
        grandchild = in_child(lambda: works(db, "grandchild", 2))
        works(db, "child again", 2)
        assert os.waitpid(grandchild, 0)[1] == 0

    db.ping()
    pid = in_child(child)
    works(db, "parent", 20)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_child_forked_while_another_thread_is_in_a_call_is_not_held_up(scripted: "Scripted") -> None:
    """Nothing it inherits waits for a thread that it does not have."""
    asked = threading.Event()

    def slow(line: "Line") -> None:
        line.request()
        asked.set()
        server.release.wait(DEADLINE_S)
        line.reply(b"slow")

    def serve(line: "Line") -> None:
        while line.request() is not None:
            line.reply(b"child")

    server = scripted(slow, serve)
    db = kv.connect(server.address, timeout=DEADLINE_S)
    answers: list[bytes | None] = []
    thread = threading.Thread(target=lambda: answers.append(db.get("a")))
    thread.start()
    assert asked.wait(DEADLINE_S)

    def child() -> None:
        assert db.get("a") == b"child"

    assert os.waitpid(in_child(child), 0)[1] == 0
    server.release.set()
    thread.join(DEADLINE_S)
    assert answers == [b"slow"]


def test_a_child_closes_its_copy_of_the_parents_connection(db: kv.Client) -> None:
    """Otherwise the daemon would never see the parent go."""
    db.ping()
    connection = db._current_connection()._stream
    assert connection is not None
    inherited = connection._socket.fileno()
    name = os.readlink(f"/proc/self/fd/{inherited}")

    def child() -> None:
        db.ping()
        links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        assert name not in [os.readlink(link) for link in links if os.path.lexists(link)]

    assert os.waitpid(in_child(child), 0)[1] == 0
    db.ping()
    assert db._current_connection()._stream is connection


# ---------------------------------------------------------------------- interrupts


def test_an_interrupted_call_does_not_shift_later_answers(scripted: "Scripted") -> None:
    interrupted = threading.Event()

    def interrupt_then_answer(line: "Line") -> None:
        line.request()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        interrupted.wait(DEADLINE_S)
        line.reply(b"wrong")
        while (requests := line.request()) is not None:
            line.reply(requests[0][1].encode())

    server = scripted(interrupt_then_answer)
    db = kv.connect(server.address, timeout=DEADLINE_S)
    with pytest.raises(KeyboardInterrupt):
        db.get("a")
    interrupted.set()
    assert [db.get(key) for key in "bcd"] == [b"b", b"c", b"d"]
    assert server.connections == 1, "ephemeral keys and locks hang on it"


def test_calls_interrupted_by_signals_at_any_moment_shift_no_answer_and_block_nobody(db: kv.Client) -> None:
    """Real signals, as the interpreter looks for them: some thousand, at random moments of a call."""
    chosen = random.Random(7)  # noqa: S311  # to be repeatable
    names = [f"signal:{number}" for number in range(50)]
    db.set_many({name: name.encode() for name in names})
    connection = db._current_connection()._stream
    interrupted = reconnected = 0
    armed = False

    def interrupt(*_: object) -> None:
        # Another thread may take the signal from the kernel, and then Python tells us of it late: behind the call.
        nonlocal armed
        if armed:
            armed = False
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        while interrupted < INTERRUPTS:
            name = chosen.choice(names)
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, chosen.uniform(1e-6, 2e-4))
                for _ in range(20):
                    assert db.get(name) == name.encode()
                    assert db.set(name, name.encode()) > 0
                signal.setitimer(signal.ITIMER_REAL, 0)
                armed = False
            except KeyboardInterrupt:
                interrupted += 1
            lock = db._current_connection()._lock
            assert not lock.locked(), "nobody is left waiting for it"
            assert db.get(name) == name.encode()
            reconnected += db._current_connection()._stream is not connection
            connection = db._current_connection()._stream
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert db.get_many(names) == {name: name.encode() for name in names}
    assert reconnected < interrupted / 2, "most interrupts cost no connection"


def test_a_call_interrupted_anywhere_does_not_shift_later_answers(db: kv.Client) -> None:
    """At each line of the client's code, one after the other."""
    names = [f"interrupt:{number}" for number in range(4)]
    db.set_many({name: name.encode() for name in names})
    interrupted = 0
    while True:
        lines_left = interrupted
        db.get(names[0])

        def trace(frame: FrameType, event: str, _: object) -> Any:  # noqa: ANN401
            nonlocal lines_left
            # Not in deliver(): a trace could raise between its lines where no signal is looked for, and leave the lock.
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
    assert interrupted > 20, "it went through the whole of a call"
