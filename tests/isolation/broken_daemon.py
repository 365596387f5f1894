"""`kv serve` with a planted bug: `python -m tests.isolation.broken_daemon BUG serve …`.

The isolation tests also run against these daemons, and must find each bug. The daemon itself contains none of this:
each function here replaces a part of it in this process, before it starts.
"""

import sys
from collections.abc import Callable
from itertools import repeat
from typing import Any

import kvd.engine.database
from kv.cli.main import main
from kvd.engine.database import Database
from kvd.engine.durability import NO_WAIT
from kvd.engine.feeds import Feed
from kvd.engine.snapshots import Snapshots
from kvd.requests.needs import Needs
from kvd.store import isolation
from kvd.store.errors import Conflict
from kvd.store.idempotency import IdempotencyCache
from kvd.store.isolation import Validation
from kvd.store.store import Store

Function = Callable[..., Any]
BUGS: dict[str, Callable[[], None]] = {}


def bug(plant: Callable[[], None]) -> Callable[[], None]:
    """Register a bug. Its name is the function's, with spaces for underscores."""
    BUGS[plant.__name__.replace("_", " ")] = plant
    return plant


def replace(owner: object, name: str, make: Callable[[Function], Function]) -> None:
    """Replace the function ``name`` of ``owner`` with ``make`` of it."""
    setattr(owner, name, make(getattr(owner, name)))


# ---------------------------------------------------------------------- the commit rule


@bug
def validates_nothing() -> None:
    replace(kvd.engine.database, "validate", lambda _: lambda *args: None)
    replace(Validation, "check", lambda _: lambda *args: None)


@bug
def validates_only_what_is_written() -> None:
    def make(commit: Function) -> Function:
        return lambda self, writes, reads, *rest: commit(
            self, writes, {key: reads[key] for key in reads if key in writes}, *rest
        )

    replace(Database, "commit", make)
    replace(Database, "commit_in_steps", make)


@bug
def overlooks_ranges() -> None:
    replace(
        kvd.engine.database,
        "validate",
        lambda validate: lambda store, reads, ranges, at: validate(store, reads, [], at),
    )
    replace(
        Validation, "__init__", lambda init: lambda self, store, reads, ranges, at: init(self, store, reads, [], at)
    )


@bug
def overlooks_deletions_in_ranges() -> None:
    def make(changed_in: Function) -> Function:
        return lambda *args: (head for head in changed_in(*args) if head.value is not None)

    replace(isolation, "_changed_in", make)
    replace(Validation, "_note", lambda note: lambda self, head: None if head.value is None else note(self, head))
    replace(Validation, "_through_keys", lambda _: lambda self: repeat(None))


@bug
def overlooks_new_keys_in_ranges() -> None:
    def make(changed_in: Function) -> Function:
        return lambda *args: (head for head in changed_in(*args) if head.previous and head.previous.value is not None)

    replace(isolation, "_changed_in", make)


@bug
def writes_what_it_refuses() -> None:
    def make(commit: Function) -> Function:
        def broken(self: Database, writes: object, reads: object, ranges: object, *rest: Any) -> Any:  # noqa: ANN401
            try:
                return commit(self, writes, reads, ranges, *rest)
            except Conflict:
                commit(self, writes, {}, [], *rest)
                raise

        return broken

    replace(Database, "commit", make)


@bug
def commits_in_halves() -> None:
    """Use two versions for one transaction, so that a read between them sees half of it."""

    def make(write: Function) -> Function:
        def broken(self: Store, writes: dict[str, bytes | None], *rest: Any) -> Any:  # noqa: ANN401
            for key in list(writes)[:-1]:
                write(self, {key: writes[key]}, *rest)
            return write(self, {key: writes[key] for key in list(writes)[-1:]}, *rest)

        return broken

    replace(Store, "write", make)


@bug
def loses_half_of_a_commit() -> None:
    """Drop the first write of one commit in fifty."""

    def make(write: Function) -> Function:
        def broken(self: Store, writes: dict[str, bytes | None], *rest: Any) -> Any:  # noqa: ANN401
            kept = list(writes)[self.version % 50 == 0 and len(writes) > 1 :]
            return write(self, {key: writes[key] for key in kept}, *rest)

        return broken

    replace(Store, "write", make)


# ---------------------------------------------------------------------- snapshots


@bug
def begins_in_the_past() -> None:
    """Begin consistent snapshots that are too old: the latest acknowledged commits may be missing."""

    def make(begin: Function) -> Function:
        def broken(self: Snapshots, peer: Any, limit: int) -> int:  # noqa: ANN401
            return int(max(begin(self, peer, limit) - 3, self._store.window.oldest_readable))

        return broken

    replace(Snapshots, "begin", make)


@bug
def fetches_what_is_current() -> None:
    replace(Store, "fetch", lambda fetch: lambda self, keys, at=None: fetch(self, keys))


@bug
def scans_what_is_current() -> None:
    def make(scan: Function) -> Function:
        def broken(self: Store, *args: Any, at: int | None = None, **rest: Any) -> Any:  # noqa: ANN401
            return scan(self, *args, **rest)

        return broken

    replace(Store, "scan", make)


# ---------------------------------------------------------------------- exactly once, and durability


@bug
def forgets_ids() -> None:
    replace(IdempotencyCache, "lookup", lambda _: lambda *args: None)


@bug
def answers_before_it_is_written() -> None:
    replace(Needs, "position_for", lambda _: lambda *args: NO_WAIT)


# ---------------------------------------------------------------------- feeds


def _alter_events(alter: Callable[[list[Any]], list[Any]]) -> None:
    replace(Feed, "next_events", lambda next_events: lambda self: alter(next_events(self)))


def _alter_beginning(alter: Callable[[str, int | None], tuple[str, int | None]]) -> None:
    def make(init: Function) -> Function:
        return lambda self, store, prefix, since, *rest: init(self, store, *alter(prefix, since), *rest)

    replace(Feed, "__init__", make)


@bug
def drops_an_event() -> None:
    _alter_events(lambda events: [event for event in events if event[0] != "change" or event[1] % 500])


@bug
def repeats_an_event() -> None:
    _alter_events(lambda events: [event for event in events for _ in range(1 + (event[1] % 500 == 0))])


@bug
def splits_an_event() -> None:
    def split(event: Any) -> list[Any]:  # noqa: ANN401
        if event[0] != "change":
            return [event]
        return [(*event[:4], {key: value}) for key, value in event[4].items()]

    _alter_events(lambda events: [part for event in events for part in split(event)])


@bug
def swaps_two_events() -> None:
    _alter_events(lambda events: events[1::-1] + events[2:] if len(events) > 1 else events)


@bug
def tells_of_other_keys() -> None:
    _alter_beginning(lambda prefix, since: (prefix[:2], since))


@bug
def goes_on_one_too_late() -> None:
    _alter_beginning(lambda prefix, since: (prefix, None if since is None else since + 1))


@bug
def does_not_say_that_it_lost_its_place() -> None:
    """A watcher that is too slow continues with the oldest commit in the history, and never learns of the gap."""

    def broken(self: Feed) -> None:
        self._position = self._store.window.oldest_readable

    replace(Feed, "_reset", lambda _: broken)


@bug
def resynchronises_with_half() -> None:
    _alter_events(lambda events: [event for at, event in enumerate(events) if event[0] != "item" or at % 2])


if __name__ == "__main__":
    BUGS[sys.argv[1]]()
    sys.argv[1:] = sys.argv[2:]
    sys.exit(main())
