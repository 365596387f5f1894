"""The history window: the last commits, and with them the versions that readers of the past may still ask for.

Commits stand in a queue in commit order. Dropping the oldest, made at version v, raises the one number
``oldest_readable`` to v and cuts what its heads superseded; every version from there on is still a consistent
snapshot of everything:

        commits      5      7      8             oldest_readable = 4: any version >= 4 can be read
        key a   3 ◀─ 5      │      │
        key b   4 ◀──┼───── 7 ◀─── 8
                     │
        drop 5:  the link 5 ─▶ 3 of key a is cut; oldest_readable = 5

Commits that came together stand in the queue together, as one group, and are dropped together.

The window is bounded by bytes, age and count. A pinned version keeps it open up to a byte limit of its own.
"""

from collections import deque

import msgspec

from kvd.store.heads import Head

# What the window itself keeps alive, in bytes of CPython objects, as sys.getsizeof tells: a group with its tuple and
# numbers, a head's place in the tuple, and a superseded head with its version and its value's header. The value's
# bytes come on top.
GROUP_BYTES = 224
PLACE_BYTES = 8
SUPERSEDED_BYTES = 112


class WindowLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How much history is kept, whichever limit is met first. Age in microseconds."""

    max_age_us: int = 600_000_000
    max_bytes: int = 64 * 1024 * 1024
    max_commits: int = 1_000_000
    # A pinned version holds the window open beyond the limits above, but no further than this.
    max_pinned_bytes: int = 256 * 1024 * 1024


class Group(msgspec.Struct, gc=False, frozen=True, eq=False):
    """Consecutive commits of one author at one time: a frame's worth of them, or one.

    ``heads`` are all that they wrote, in order; heads of one commit share its version. ``time`` in microseconds since
    the epoch. ``size`` is what the window counts for it, in bytes. One object for many commits, because objects that
    lie in memory until the window drops them are what makes a small commit expensive: each is a cache miss then.
    """

    time: int
    author: str
    heads: tuple[Head, ...]
    commits: int
    size: int
    has_tombstones: bool


class Window:
    """The queue of commits, newest last."""

    NOTHING_PINNED = 2**64  # above every version

    __slots__ = ("_pins", "bytes", "commits", "groups", "limits", "oldest_readable")

    def __init__(self, limits: WindowLimits) -> None:
        self.limits = limits
        self.groups: deque[Group] = deque()
        self.commits = 0
        self.bytes = 0
        self.oldest_readable = 0
        self._pins: dict[int, int] = {}  # version → times pinned; versions only ever arrive in ascending order

    def append(self, group: Group) -> None:
        """Take the newest commits in."""
        self.groups.append(group)
        self.commits += group.commits
        self.bytes += group.size

    def pin(self, version: int) -> None:
        """Keep ``version``, which must be the newest, readable until it is released as often as it was pinned."""
        self._pins[version] = self._pins.get(version, 0) + 1

    def unpin(self, version: int) -> None:
        """Release one pin. Raises KeyError if there is none."""
        if self._pins[version] == 1:
            del self._pins[version]
        else:
            self._pins[version] -= 1

    def drop(self, now: int, budget_keys: int) -> list[Group]:
        """Take out the oldest commits that are over the limits, about ``budget_keys`` keys of them; return them.

        From then on nothing before the last of them can be read.
        """
        limits, groups = self.limits, self.groups
        oldest_time = now - limits.max_age_us
        pinned = next(iter(self._pins), self.NOTHING_PINNED)
        dropped: list[Group] = []
        while groups and budget_keys > 0:
            oldest = groups[0]
            if self.bytes <= limits.max_bytes and self.commits <= limits.max_commits and oldest.time >= oldest_time:
                break
            if oldest.heads[-1].version > pinned and self.bytes <= limits.max_pinned_bytes:
                break
            dropped.append(groups.popleft())
            self.commits -= oldest.commits
            self.bytes -= oldest.size
            self.oldest_readable = oldest.heads[-1].version
            budget_keys -= len(oldest.heads)
        return dropped
