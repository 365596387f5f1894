"""The worker processes: forked, told to begin by a byte, told to stop by the end of their pipe, heard as lines of JSON.

    parent                               worker
    fork                                 connect
                          ◀── ready ──   or: failed
    (the keys are loaded)
    b"g" ── control ──▶                  work
                          ◀── done ──    now and then
                          ◀── result ──  or: failed

A worker whose control pipe ends (the parent stops it, or has died) sends nothing more, waits for the answers to what it
has sent, and ends. So when all workers have ended nothing of theirs is written any more, and the keys can be removed.
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

_TOLD_EVERY_S = 0.1
_BEGIN = b"g"
# How long a worker that was told to stop may wait for its last answers, beyond the time-out of a request.
_PATIENCE_S = 2.0


class Worker:
    """One worker process, seen from the parent."""

    def __init__(self, pid: int, control: int, reports: int) -> None:
        self.pid = pid
        self.control = control
        self.reports = reports
        self.done = 0
        self._buffer = b""

    def told(self) -> "Iterator[dict[str, Any]]":
        """What has come. Raises CommandFailed if it has ended without a result."""
        data = os.read(self.reports, 65_536)
        if not data:
            raise CommandFailed("a worker process of the benchmark was ended from outside", exits.SERVER_ERROR)
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        yield from map(json.loads, lines)


class Workers:
    """All of them. Use as a context manager: at its end none of them runs any more."""

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
        """Start them, and return when each is connected. Raises CommandFailed."""
        for process in range(self._plan.processes):
            self._all.append(self._fork(process))
        waiting = set(self._all)
        while waiting:
            for worker, told in self._heard(waiting):
                if "ready" in told:
                    waiting.discard(worker)

    def work(self, progress: "Callable[[int], None]") -> Tally:
        """Have them do the work; what all have done together. Raises CommandFailed."""
        tally = Tally()
        for worker in self._all:
            os.write(worker.control, _BEGIN)
        waiting = set(self._all)
        while waiting:
            for worker, told in self._heard(waiting):
                if "result" in told:
                    tally.add(told["result"])
                    waiting.discard(worker)
                worker.done = told.get("done", worker.done)
            progress(sum(worker.done for worker in self._all))
        return tally

    def _heard(self, waiting: set[Worker]) -> "Iterator[tuple[Worker, dict[str, Any]]]":
        poll = select.poll()
        by_descriptor = {worker.reports: worker for worker in waiting}
        for descriptor in by_descriptor:
            poll.register(descriptor, select.POLLIN)
        for descriptor, _ in poll.poll():
            worker = by_descriptor[descriptor]
            for told in worker.told():
                if "failed" in told:
                    raise CommandFailed(*told["failed"])
                yield worker, told

    def stop(self) -> None:
        """Have them end, by force if they do not, and wait for it."""
        workers, self._all = self._all, []
        for worker in workers:
            os.close(worker.control)
        deadline = time.monotonic() + (self._plan.timeout_s or 0) + _PATIENCE_S
        for worker in workers:
            _drain(worker.reports, deadline)
            os.close(worker.reports)
            try:
                os.kill(worker.pid, signal.SIGKILL)  # in vain if it has ended: it is only reaped below
            except ProcessLookupError:
                pass
            os.waitpid(worker.pid, 0)

    def _fork(self, process: int) -> Worker:
        # Until the child has its own way with signals it must not get one: it would act as the parent.
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
            _be_worker(self._plan, self._prefix, process, control, child_reports)
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


def _be_worker(plan: "Plan", prefix: str, process: int, control: int, reports: int) -> None:
    """The life of a worker; does not return."""
    try:
        # Ctrl-c reaches all processes of a terminal; that the parent is interrupted ends the control pipe.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        _work(plan, prefix, process, control, _Reporter(reports))
    finally:
        os._exit(0)


class _Reporter:
    """Tells the parent."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._next = 0.0

    def tell(self, **what: object) -> None:
        """One line."""
        data = memoryview(json.dumps(what).encode() + b"\n")
        while data:
            data = data[os.write(self._descriptor, data) :]

    def done(self, count: int) -> None:
        """So much is done; told now and then."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _TOLD_EVERY_S
            self.tell(done=count)


def _work(plan: "Plan", prefix: str, process: int, control: int, reporter: _Reporter) -> None:
    try:
        load = _load(plan, prefix, process, control)
        reporter.tell(ready=True)
        if os.read(control, 1) != _BEGIN:
            return
        began, used_s = time.monotonic(), time.process_time()
        load.run(reporter.done)
        load.tally.seconds = time.monotonic() - began
        load.tally.processor_s = time.process_time() - used_s
        load.close()
        reporter.tell(result=load.tally.told())
    except KvdError as error:
        reporter.tell(failed=[error.message, exits.exit_code_for(error.code)])
    except BrokenPipeError:
        pass  # the parent is gone
    except Exception as error:
        text = f"a fault in kv bench: {type(error).__name__}: {error}; please report it"
        reporter.tell(failed=[text, exits.INTERNAL])


def _load(plan: "Plan", prefix: str, process: int, control: int) -> "Any":  # noqa: ANN401 - one of two alike
    if plan.near_cache:
        from kv.cli.bench.near_load import NearLoad

        return NearLoad(plan, prefix, process, control)
    from kv.cli.bench.wire_load import WireLoad

    return WireLoad(plan, prefix, process, control)
