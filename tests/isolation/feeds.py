"""Were feeds right? Each session of a watcher, against what happened.

only its prefix    every event has all changes of that commit to keys with the prefix, and nothing else
in order, once     versions rise
complete           between two places of a feed there is no commit that it did not tell of
resynchronised     where it could not go on it says so, and tells all that there is at one version
resumable          a feed from version v begins right behind it
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

from tests.isolation.records import Session
from tests.isolation.replay import Findings, Truth


class Feeds:
    """Checks sessions, and counts what it has checked."""

    def __init__(self, truth: Truth, pids: Mapping[int, int], *, has_all_history: bool) -> None:
        self.findings = Findings()
        self.events = self.resets = self.late_resets = 0
        self._truth = truth
        self._pids = pids
        self._has_all_history = has_all_history
        self._with_prefix: dict[str, list[int]] = {}

    def check(self, sessions: Sequence[Session]) -> Findings:
        """Everything that is wrong with them."""
        for session in sessions:
            if session.prefix not in self._with_prefix:
                self._with_prefix[session.prefix] = self._truth.with_prefix(session.prefix)
            self._check(session)
        return self.findings

    def _check(self, session: Session) -> None:
        place, time = session.since, 0
        items: dict[str, tuple[bytes, int]] | None = None
        for number, (kind, version, *told) in enumerate(session.events):
            self.events += 1
            if items is not None and kind not in ("item", "live"):
                self._found("unfinished", session, f"{kind} within a resynchronisation at {version}")
            if kind == "change":
                self._check_change(session, place, version, told)
                if told[0] < time:
                    self._found("time", session, f"{version} is of {told[0]}, before {time}")
                place, time = version, told[0]
            elif kind == "reset":
                self._check_reset(session, number)
                items, place = {}, version
            elif kind == "item" and items is not None:
                items[version] = told[0], told[1]  # here the key stands in the version's place
            elif kind == "live":
                if items is not None:
                    self._check_items(session, place, version, items)
                else:
                    self._check_gap(session, place, version + 1)
                items, place = None, version
            else:
                self._found("strange", session, f"{kind} {version}")

    def _found(self, name: str, session: Session, text: str) -> None:
        self.findings.add(name, f"{session.prefix!r} since {session.since}: {text}")

    def _check_change(self, session: Session, place: int | None, version: int, told: list[Any]) -> None:
        _, author, writes = told
        if place is not None and version <= place:
            self._found("order", session, f"{version} behind {place}")
        changes = self._truth.changes.get(version, {})
        if writes != {key: value for key, value in changes.items() if key.startswith(session.prefix)} or not writes:
            self._found("content", session, f"{version} was {changes}, and was told as {writes}")
        elif author[1] != self._pids[self._truth.process[version]]:
            self._found("author", session, f"{version} was not by {author}")
        self._check_gap(session, place, version)

    def _check_gap(self, session: Session, place: int | None, version: int) -> None:
        """Nothing was left out behind ``place`` and before ``version``."""
        if place is None:  # begun without a version: its place is not older than what was known before
            place = session.known
            if version - 1 > place:
                return
        mine = self._with_prefix[session.prefix]
        at = bisect_right(mine, place)
        if at < len(mine) and mine[at] < version:
            self._found("gap", session, f"nothing told between {place} and {version}, but {mine[at]} happened")

    def _check_reset(self, session: Session, number: int) -> None:
        self.resets += 1
        self.late_resets += number > 0
        if self._has_all_history and (session.since is None or session.since <= session.known):
            self._found("needless reset", session, f"at {session.known} there was all of the history")

    def _check_items(
        self, session: Session, place: int | None, version: int, items: dict[str, tuple[bytes, int]]
    ) -> None:
        if place != version:
            self._found("unfinished", session, f"a resynchronisation at {place} ends at {version}")
        right = self._truth.state(session.prefix, version)
        if items != right:
            wrong = {key for key in items.keys() | right.keys() if items.get(key) != right.get(key)}
            self._found("items", session, f"{sorted(wrong)[:5]} at {version} are not as they were")
