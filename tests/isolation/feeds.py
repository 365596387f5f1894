"""Checks feeds: compares each session of a watcher with what happened.

only its prefix    every event has all changes of its commit to keys with the prefix, and nothing else
in order, once     versions rise
complete           the feed reports every commit between two of its versions
resynchronised     a feed that cannot continue says so, and sends the complete state at one version
resumable          a feed from version v begins with the first commit after v
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

from tests.isolation.records import Session
from tests.isolation.replay import Findings, Truth


class Feeds:
    """Checks sessions, and counts the events and resynchronisations."""

    def __init__(self, truth: Truth, pids: Mapping[int, int], *, has_all_history: bool) -> None:
        self.findings = Findings()
        self.events = self.resets = self.late_resets = 0
        self._truth = truth
        self._pids = pids
        self._has_all_history = has_all_history
        self._with_prefix: dict[str, list[int]] = {}

    def check(self, sessions: Sequence[Session]) -> Findings:
        """Return everything that is wrong with ``sessions``."""
        for session in sessions:
            if session.prefix not in self._with_prefix:
                self._with_prefix[session.prefix] = self._truth.with_prefix(session.prefix)
            self._check(session)
        return self.findings

    def _check(self, session: Session) -> None:
        place, time = session.since, 0
        items: dict[str, tuple[bytes, int]] | None = None
        for number, (kind, version, *fields) in enumerate(session.events):
            self.events += 1
            if items is not None and kind not in ("item", "live"):
                self._found("unfinished", session, f"{kind} within a resynchronisation at {version}")
            if kind == "change":
                self._check_change(session, place, version, fields)
                if fields[0] < time:
                    self._found("time", session, f"{version} has the time {fields[0]}, which is before {time}")
                place, time = version, fields[0]
            elif kind == "reset":
                self._check_reset(session, number)
                items, place = {}, version
            elif kind == "item" and items is not None:
                items[version] = fields[0], fields[1]  # in an item, the key stands in the place of the version
            elif kind == "live":
                if items is not None:
                    self._check_items(session, place, version, items)
                else:
                    self._check_gap(session, place, version + 1)
                items, place = None, version
            else:
                self._found("unknown event", session, f"{kind} {version}")

    def _found(self, name: str, session: Session, text: str) -> None:
        self.findings.add(name, f"{session.prefix!r} since {session.since}: {text}")

    def _check_change(self, session: Session, place: int | None, version: int, fields: list[Any]) -> None:
        _, author, writes = fields
        if place is not None and version <= place:
            self._found("order", session, f"{version} after {place}")
        changes = self._truth.changes.get(version, {})
        if writes != {key: value for key, value in changes.items() if key.startswith(session.prefix)} or not writes:
            self._found("content", session, f"{version} was {changes}, and was sent as {writes}")
        elif author[1] != self._pids[self._truth.process[version]]:
            self._found("author", session, f"{version} was not by {author}")
        self._check_gap(session, place, version)

    def _check_gap(self, session: Session, place: int | None, version: int) -> None:
        """Check that no commit was left out after ``place`` and before ``version``."""
        if place is None:  # a watch without a version begins no earlier than the version known before
            place = session.known
            if version - 1 > place:
                return
        versions = self._with_prefix[session.prefix]
        at = bisect_right(versions, place)
        if at < len(versions) and versions[at] < version:
            self._found("gap", session, f"no event between {place} and {version}, but {versions[at]} was committed")

    def _check_reset(self, session: Session, number: int) -> None:
        self.resets += 1
        self.late_resets += number > 0
        if self._has_all_history and (session.since is None or session.since <= session.known):
            self._found("needless reset", session, f"at {session.known} the history was complete")

    def _check_items(
        self, session: Session, place: int | None, version: int, items: dict[str, tuple[bytes, int]]
    ) -> None:
        if place != version:
            self._found("unfinished", session, f"a resynchronisation at {place} ends at {version}")
        expected = self._truth.state(session.prefix, version)
        if items != expected:
            wrong = {key for key in items.keys() | expected.keys() if items.get(key) != expected.get(key)}
            self._found("items", session, f"{sorted(wrong)[:5]} at {version} differ from the state of that version")
