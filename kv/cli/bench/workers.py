"""The worker processes. They are forked, begin at a byte, stop at the end of a pipe, and report by lines of JSON.

    parent                               worker
    fork                                 connect
                          ◀── ready ──   or: failed
    (the keys are loaded)
    b"g" ── control ──▶                  work
                          ◀── done ──    now and then
                          ◀── result ──  or: failed

When its control pipe ends (the parent stops it, or has died), a worker sends nothing more, waits for the replies to
what it has sent, and ends. So after the end of all workers none of their writes can happen, and the keys can be
removed.
"""

import json
import os
import select
import signal
import time

from kv.cli.bench.signals import ENDING, deferred
from kv.cli.bench.tally import Tally
from kv.cli.failures import CommandFailed
from kv.errors import KvdError
from kvd.protocol import exits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from kv.cli.bench.plan import Plan

_REPORT_INTERVAL_S = 0.1
_BEGIN = b"g"
# How long a worker may wait for its last replies after the parent stops it, beyond the time-out of a request.
_PATIENCE_S = 2.0


class Worker:
    """One worker process, as the parent sees it."""

    def __init__(self, pid: int, control: int, reports: int) -> None:
        self.pid = pid
        self.control = control
        self.reports = reports
        self.done = 0
        self._buffer = b""

    def receive(self) -> "Iterator[dict[str, Any]]":
        """Yield the messages that have arrived. Raises CommandFailed if the worker has ended without a result."""
        data = os.read(self.reports, 65_536)
        if not data:
            raise CommandFailed("a worker process of the benchmark was ended from outside", exits.SERVER_ERROR)
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        yield from map(json.loads, lines)


class Workers:
    """All worker processes. A context manager: at its end, none of them runs any more."""

    def __init__(self, plan: "Plan", prefix: str) -> None:
        self._plan = plan
        self._prefix = prefix
        self._all: list[Worker] = []

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        with deferred():
            self.stop()

    def start(self) -> None:
        """Start the workers, and return when each is connected. Raises CommandFailed."""
        for process in range(self._plan.processes):
            self._all.append(self._fork(process))
        waiting = set(self._all)
        while waiting:
            for worker, message in self._receive(waiting):
                if "ready" in message:
                    waiting.discard(worker)

    def work(self, progress: "Callable[[int], None]") -> Tally:
        """Let the workers run their load; return their tallies added up. Raises CommandFailed."""
        tally = Tally()
        for worker in self._all:
            os.write(worker.control, _BEGIN)
        waiting = set(self._all)
        while waiting:
            for worker, message in self._receive(waiting):
                if "result" in message:
                    tally.add(message["result"])
                    waiting.discard(worker)
                worker.done = message.get("done", worker.done)
            progress(sum(worker.done for worker in self._all))
        return tally

    def _receive(self, waiting: set[Worker]) -> "Iterator[tuple[Worker, dict[str, Any]]]":
        poll = select.poll()
        by_descriptor = {worker.reports: worker for worker in waiting}
        for descriptor in by_descriptor:
            poll.register(descriptor, select.POLLIN)
        for descriptor, _ in poll.poll():
            worker = by_descriptor[descriptor]
            for message in worker.receive():
                if "failed" in message:
                    raise CommandFailed(*message["failed"])
                yield worker, message

    def stop(self) -> None:
        """End the workers, by force if they do not end in time, and wait for their ends."""
        workers, self._all = self._all, []
        for worker in workers:
            os.close(worker.control)
        deadline = time.monotonic() + (self._plan.timeout_s or 0) + _PATIENCE_S
        for worker in workers:
            _drain(worker.reports, deadline)
            os.close(worker.reports)
            try:
                os.kill(worker.pid, signal.SIGKILL)  # without effect if it has ended, for it is reaped only below
            except ProcessLookupError:
                pass
            os.waitpid(worker.pid, 0)

    def _fork(self, process: int) -> Worker:
        # The child must get no signal before it has its own handlers: it would act as the parent.
        with deferred():
            return self._forked(process)

    def _forked(self, process: int) -> Worker:
        control, parent_control = os.pipe()
        reports, child_reports = os.pipe()
        pid = os.fork()
        if pid == 0:
            for descriptor in (
                parent_control,
                reports,
                *(w.control for w in self._all),
                *(w.reports for w in self._all),
            ):
                os.close(descriptor)
            _run_worker(self._plan, self._prefix, process, control, child_reports)
        os.close(control)
        os.close(child_reports)
        return Worker(pid, parent_control, reports)


def _drain(descriptor: int, deadline: float) -> None:
    """Return when the other end is closed, or at the deadline."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        if not os.read(descriptor, 65_536):
            return


def _run_worker(plan: "Plan", prefix: str, process: int, control: int, reports: int) -> None:
    """Run a worker to its end. Does not return."""
    try:
        # Ctrl-c reaches all processes of a terminal. The interrupted parent ends the control pipe.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        _work(plan, prefix, process, control, _Reporter(reports))
    finally:
        os._exit(0)


class _Reporter:
    """Sends messages to the parent."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._next_report = 0.0

    def send(self, **message: object) -> None:
        """Send one message, a line."""
        data = memoryview(json.dumps(message).encode() + b"\n")
        while data:
            data = data[os.write(self._descriptor, data) :]

    def report_progress(self, done: int) -> None:
        """Report how many requests are done, but not more often than the interval."""
        now = time.monotonic()
        if now >= self._next_report:
            self._next_report = now + _REPORT_INTERVAL_S
            self.send(done=done)


def _work(plan: "Plan", prefix: str, process: int, control: int, reporter: _Reporter) -> None:
    try:
        load = _load(plan, prefix, process, control)
        reporter.send(ready=True)
        if os.read(control, 1) != _BEGIN:
            return
        started, used_s = time.monotonic(), time.process_time()
        load.run(reporter.report_progress)
        load.tally.seconds = time.monotonic() - started
        load.tally.processor_s = time.process_time() - used_s
        load.close()
        reporter.send(result=load.tally.report())
    except KvdError as error:
        reporter.send(failed=[error.message, exits.exit_code_for(error.code)])
    except BrokenPipeError:
        pass  # the parent is gone
    except Exception as error:
        text = f"a fault in kv bench: {type(error).__name__}: {error}; please report it"
        reporter.send(failed=[text, exits.INTERNAL])


def _load(plan: "Plan", prefix: str, process: int, control: int) -> "Any":  # noqa: ANN401 - a NearLoad or a WireLoad
    if plan.near_cache:
        from kv.cli.bench.near_load import NearLoad

        return NearLoad(plan, prefix, process, control)
    from kv.cli.bench.wire_load import WireLoad

    return WireLoad(plan, prefix, process, control)
