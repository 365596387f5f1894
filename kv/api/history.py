"""The past: the versions of a key, the log of commits, and going back to an earlier state.

Going back is an ordinary commit that validates what it read. So it never overwrites a concurrent write, and it is in
the log like any other commit.
"""

from __future__ import annotations

from kv.api.procedures import YieldItems, ask, send
from kv.errors import Conflict, SnapshotGone
from kv.wire import operations
from kv.wire.exchange import Exchange
from kvd.protocol import store_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kv.api.procedures import Pages, Procedure
    from kv.results import Commit, Version
    from kvd.protocol import Position

_PAGE_VERSIONS = 1_000


class Plan:
    """What a commit that goes back writes, and the versions that it expects to find."""

    def __init__(self, writes: dict[str, bytes | None], reads: dict[str, int], store_id: str | None) -> None:
        self.writes = writes
        self.reads = reads
        self.store_id = store_id

    def carry_out(self) -> Procedure[Position]:
        """Make the commit; return its version."""
        options = operations.write_options(keep_ttl=True)
        version: Position = yield from ask(operations.commit(self.writes, self.reads, (), None, options), self.store_id)
        return version


def writes_of(planning: Procedure[Plan]) -> Procedure[dict[str, bytes | None]]:
    """What a plan would write."""
    plan = yield from planning
    return plan.writes


# ---------------------------------------------------------------------- looking back


def history(key: str, limit: int | None) -> Pages[Version]:
    """The versions of a key, newest first."""
    limit = operations.number_or_none(limit, "a limit")
    before: int | None = None
    while limit is None or limit > 0:
        page = _PAGE_VERSIONS if limit is None else min(limit, _PAGE_VERSIONS)
        exchange: Exchange = yield Exchange((operations.history(key, page, before),))
        versions: list[Version] = exchange.result()
        if not versions:
            return
        yield YieldItems(versions)
        before = versions[-1].version
        if limit is not None:
            limit -= len(versions)


def log(since: int | None, limit: int | None) -> Pages[Commit]:
    """The commits after ``since``, oldest first; or the newest ``limit`` of them."""
    limit = operations.number_or_none(limit, "a limit")
    if since is None and limit is not None:
        yield from _newest(limit)
        return
    store_id = store_of(since)
    newest: int | None = None
    following = 0 if since is None else since + 1
    while limit is None or limit > 0:
        page = _PAGE_VERSIONS if limit is None else min(limit, _PAGE_VERSIONS)
        # It ends at the commit that is the newest at the beginning; concurrent writers would keep it going for ever.
        exchange: Exchange = yield Exchange((operations.log(following, page, store_id), operations.version()))
        try:
            commits: list[Commit] = exchange.result(0)
        except SnapshotGone as gone:
            oldest = gone.fields.get("oldest_readable")
            if since is not None or not isinstance(oldest, int) or following > oldest:
                raise
            following = oldest + 1  # the oldest commit that is still known
            continue
        newest = exchange.result(1) if newest is None else newest
        commits = [commit for commit in commits if commit.version <= newest]
        if not commits:
            return
        yield YieldItems(commits)
        following = commits[-1].version + 1
        if limit is not None:
            limit -= len(commits)


def _newest(limit: int) -> Pages[Commit]:
    """The newest ``limit`` commits, oldest first: page by page from the newest back, and then turned around."""
    pages: list[list[Commit]] = []
    before: int | None = None
    while limit > 0:
        exchange: Exchange = yield Exchange((operations.newest_commits(before, min(limit, operations.MAX_PAGE_SIZE)),))
        commits: list[Commit] = exchange.result()
        if not commits:
            break
        pages.append(commits)
        before = commits[0].version
        limit -= len(commits)
    for commits in reversed(pages):
        yield YieldItems(commits)


# ---------------------------------------------------------------------- going back


def plan_rollback(keys: list[str], to: int) -> Procedure[Plan]:
    """Plan to restore ``keys`` to what they were at version ``to``."""
    exchange = yield from send(operations.fetch(keys, to), operations.fetch(keys, None))
    then, now = exchange.result(0), exchange.result(1)
    writes = {key: then[key].value for key in keys if then[key].version != now[key].version}
    reads = {key: now[key].version for key in keys}
    return Plan(writes, reads, _store_of(exchange))


def rollback(keys: list[str], to: int) -> Procedure[Position]:
    """Restore ``keys`` to what they were at version ``to``; return the version of the commit."""
    plan = yield from plan_rollback(keys, to)
    version = yield from plan.carry_out()
    return version


def plan_revert(version: int) -> Procedure[Plan]:
    """Plan to undo the commit that made ``version``, if nothing that it wrote has changed since."""
    exchange = yield from send(operations.log(int(version), 1, store_of(version)))
    commits: list[Commit] = exchange.result()
    if not commits or commits[0].version != version:
        raise SnapshotGone(f"there is no commit with version {version}; see the log", "snapshot_gone")
    keys, store_id = commits[0].keys, _store_of(exchange)
    histories = [operations.history(key, 1, None) for key in keys]
    exchange = yield from send(operations.fetch(keys, version - 1), *histories, store_id=store_id)
    before = exchange.result(0)
    newest: dict[str, Version] = {key: exchange.result(1 + number)[0] for number, key in enumerate(keys)}
    changed = [
        [key, version, v.version, v.time, _author_fields(v)] for key, v in newest.items() if v.version != version
    ]
    if changed:
        text = f"{changed[0][0]!r} has changed since version {version}; nothing was undone"
        raise Conflict(text, "conflict", {"conflicts": changed[:100]})
    reads = {key: 0 if newest[key].value is None else version for key in keys}
    return Plan({key: before[key].value for key in keys}, reads, store_id)


def revert(version: int) -> Procedure[Position]:
    """Undo the commit that made ``version``; return the version of the new commit."""
    plan = yield from plan_revert(version)
    new_version = yield from plan.carry_out()
    return new_version


def _author_fields(version: Version) -> list[object] | None:
    """Return a version's author as the wire has it."""
    author = version.author
    return None if author is None else [author.uid, author.pid, author.name]


def _store_of(exchange: Exchange) -> str | None:
    return exchange.protocol.store_id if exchange.protocol is not None else None
