"""Which client may do what with which keys.

A rule gives rights below a prefix to a user, a group, the holder of a certificate or token, or everyone. The rules with
the longest prefix of a key decide about it, all of them together, and no others. So a rule for a longer prefix also
denies what lies below it to all clients that it does not name.

        ""         everyone   read                        "a"          read for everyone
        "team/"    group dev  read, write                 "team/x"     read and write for dev, nothing for the others
        "team/x/"  user ann   read, write                 "team/x/1"   nothing for dev

A client is identified by what the kernel reports at connect (SO_PEERCRED, SO_PEERGROUPS: unix(7)), by the name in its
certificate, or by the name of its token. Without any rule every client that can connect may do all but administer. With
rules, what is not allowed is denied. The daemon's own user and root may always do everything.
"""

import os
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable
from itertools import accumulate
from typing import ClassVar

import msgspec

from kvd.protocol.ranges import prefix_end

READ, WRITE, WATCH, CACHE, ADMINISTER = 1, 2, 4, 8, 16
_KEY_RIGHTS = READ | WRITE | WATCH | CACHE
RIGHTS = {"read": READ, "write": WRITE, "watch": WATCH, "cache": CACHE, "administer": ADMINISTER}
# The kernel reports this for a uid or gid that our user namespace cannot express; it never identifies a user.
OVERFLOW_ID = 65_534
# How many allowed keys are remembered for each right of an identity.
REMEMBERED_KEYS = 16_384
# Longer keys are not remembered.
REMEMBERED_CHARACTERS = 256
# Up to this number of keys, each is looked up by itself.
_FEW_KEYS = 4


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who a client is, as far as rules depend on it."""

    uid: int | None = None
    gids: frozenset[int] = frozenset()
    certificate: str | None = None
    token: str | None = None

    @property
    def text(self) -> str:
        """Who it is, for people."""
        if self.uid is not None:
            return f"uid {self.uid}"
        if self.certificate:
            return f"certificate {self.certificate}"
        return f"token {self.token}" if self.token else "a client without a name"


class AccessRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One ``[[access]]``: ``rights`` by name for a ``uid``, ``gid``, ``certificate``, ``token`` or ``everyone``."""

    prefix: str = ""
    rights: tuple[str, ...] = ()
    uid: int | None = None
    gid: int | None = None
    certificate: str | None = None
    token: str | None = None
    everyone: bool = False

    def is_for(self, who: Identity) -> bool:
        """Whether this rule applies to ``who``."""
        if self.everyone:
            return True
        if self.uid is not None:
            return who.uid == self.uid != OVERFLOW_ID
        if self.gid is not None:
            return self.gid in who.gids and self.gid != OVERFLOW_ID
        if self.certificate is not None:
            return who.certificate == self.certificate
        return self.token is not None and who.token == self.token

    @property
    def in_words(self) -> str:
        """The rule as a sentence for people."""
        holders = {"uid": self.uid, "gid": self.gid, "certificate": self.certificate, "token": self.token}
        who = (
            "everyone"
            if self.everyone
            else next(f"{kind} {name}" for kind, name in holders.items() if name is not None)
        )
        return f"{who} may {', '.join(self.rights) or 'nothing'}"

    @property
    def bits(self) -> int:
        """Its rights as one number."""
        return sum(RIGHTS[name] for name in set(self.rights))


class Grant:
    """What one identity may do. Each decision is one binary search over the prefixes; recent decisions are cached.

    Every string that sorts between a prefix of a key and the key begins with that prefix. So the last prefix that does
    not sort after the key either is the longest prefix of the key, or begins with it. In the second case the search
    goes on among the shorter prefixes of the prefix that was found.

    ``is_limited``: whether there are keys, or rights to keys, that the grant does not include.
    """

    EVERYTHING: ClassVar["Grant"]
    ALL_BUT_ADMINISTER: ClassVar["Grant"]

    def __init__(self, by_prefix: dict[str, int]) -> None:
        self._by_prefix = by_prefix
        self.is_limited = any(bits & _KEY_RIGHTS != _KEY_RIGHTS for bits in by_prefix.values()) or "" not in by_prefix
        self._lengths = sorted({len(prefix) for prefix in by_prefix}, reverse=True)
        self._ordered = sorted(by_prefix)
        self._shorter = {prefix: self._longest_of(prefix[:-1]) if prefix else None for prefix in by_prefix}
        # For each right: how many of the first prefixes in order lack it.
        self._lacking = {
            right: [0, *accumulate(not by_prefix[prefix] & right for prefix in self._ordered)]
            for right in RIGHTS.values()
        }
        self._known: dict[int, set[str]] = {right: set() for right in RIGHTS.values()}

    def has(self, right: int) -> bool:
        """Whether ``right`` is held: ADMINISTER for the whole store, any other below any prefix."""
        if right == ADMINISTER:
            return bool(self.rights("") & ADMINISTER)
        return any(bits & right for bits in self._by_prefix.values())

    def deciding_prefix(self, key: str) -> str | None:
        """The prefix whose rules decide about ``key``."""
        place = bisect_right(self._ordered, key)
        prefix = self._ordered[place - 1] if place else None
        while prefix is not None and not key.startswith(prefix):
            prefix = self._shorter[prefix]
        return prefix

    def rights(self, key: str) -> int:
        """The rights to ``key``, as one number."""
        prefix = self.deciding_prefix(key)
        return 0 if prefix is None else self._by_prefix[prefix]

    def may(self, right: int, keys: Collection[str]) -> bool:
        """Whether all of ``keys`` are allowed."""
        known = self._known[right]
        if known.issuperset(keys):
            return True
        prefix = self._prefix_of_all(keys) if len(keys) > _FEW_KEYS else None
        if prefix is not None:
            allowed = bool(self._by_prefix[prefix] & right)
        else:
            allowed = all(self.rights(key) & right for key in keys)
        if allowed and right != WRITE:  # because most writes are to other keys each time
            self._remember(known, keys)
        return allowed

    @staticmethod
    def _remember(known: set[str], keys: Collection[str]) -> None:
        """Cache these keys as allowed, unless there are too many or they are too long."""
        if len(keys) <= REMEMBERED_KEYS and max(map(len, keys), default=0) <= REMEMBERED_CHARACTERS:
            if len(known) + len(keys) > REMEMBERED_KEYS:
                known.clear()
            known.update(keys)

    def _prefix_of_all(self, keys: Collection[str]) -> str | None:
        """The one prefix that decides about all of ``keys``; None if a quick search finds none.

        If no prefix sorts between the first key and the last, and one prefix decides about both, it decides about all
        keys in between: they begin with it as well, and any longer prefix of theirs is a prefix of the first key, too.
        """
        first, last = min(keys), max(keys)
        if bisect_right(self._ordered, first) != bisect_right(self._ordered, last):
            return None
        prefix = self.deciding_prefix(first)
        return prefix if prefix == self.deciding_prefix(last) else None

    def may_range(self, right: int, start: str, end: str | None) -> bool:
        """Whether every possible key from ``start`` on and before ``end`` (None: to the end) is allowed.

        The prefixes that decide about keys of the range: those that lie in it, and those that ``start`` begins with, up
        to the longest that all keys of the range begin with.
        """
        if end is not None and end <= start:
            return True
        around = self.deciding_prefix(start)
        while around is not None and not _holds(around, end):
            if not self._by_prefix[around] & right:
                return False
            around = self._shorter[around]
        if around is None or not self._by_prefix[around] & right:
            return False
        first = bisect_left(self._ordered, start)
        last = len(self._ordered) if end is None else bisect_left(self._ordered, end)
        return self._lacking[right][first] == self._lacking[right][last]

    def may_prefix(self, right: int, prefix: str) -> bool:
        """Whether every possible key below ``prefix`` is allowed."""
        return self.may_range(right, prefix, prefix_end(prefix))

    def _longest_of(self, key: str) -> str | None:
        """The longest prefix of ``key``, found by trying each length."""
        return next((key[:length] for length in self._lengths if key[:length] in self._by_prefix), None)


Grant.EVERYTHING = Grant({"": _KEY_RIGHTS | ADMINISTER})
Grant.ALL_BUT_ADMINISTER = Grant({"": _KEY_RIGHTS})


def _holds(prefix: str, end: str | None) -> bool:
    """Whether all keys of a range that starts with ``prefix`` begin with it: for "a" those to "b", but not to "c"."""
    if not prefix:
        return True
    end_of_prefix = prefix_end(prefix)
    return end_of_prefix is None or (end is not None and end <= end_of_prefix)


class Access:
    """The access rules in force, and the grants that follow from them."""

    def __init__(self, rules: Iterable[AccessRule] = ()) -> None:
        self.rules = tuple(rules)
        self._grants: dict[Identity, Grant] = {}

    def grant_for(self, who: Identity) -> Grant:
        """What ``who`` may do: everything if trusted, else by the rules; all but administer if there are none."""
        if is_trusted(who.uid):
            return Grant.EVERYTHING
        return self.grant(who) if self.rules else Grant.ALL_BUT_ADMINISTER

    def grant(self, who: Identity) -> Grant:
        """What ``who`` may do by the rules alone."""
        grant = self._grants.get(who)
        if grant is None:
            by_prefix: dict[str, int] = {}
            for rule in self.rules:
                by_prefix[rule.prefix] = by_prefix.get(rule.prefix, 0) | (rule.bits if rule.is_for(who) else 0)
            if len(self._grants) >= 4 * REMEMBERED_KEYS:
                self._grants.clear()
            grant = self._grants[who] = Grant(by_prefix)
        return grant

    def explain(self, who: Identity, key: str) -> tuple[list[str], str, list[str]]:
        """Return the rights that ``who`` has to ``key``, the reason in words, and the rules that decide."""
        if is_trusted(who.uid):
            return list(RIGHTS), "root and the daemon's own user may do everything", []
        if not self.rules:
            rights = [name for name in RIGHTS if name != "administer"]
            return rights, "there are no rules: every client that can connect may do all but administer", []
        grant = self.grant(who)
        prefix, bits = grant.deciding_prefix(key), grant.rights(key)
        rights = [name for name, bit in RIGHTS.items() if bits & bit]
        if prefix is None:
            return rights, "no rule is for a prefix of this key, and what is not allowed is denied", []
        deciding = [rule for rule in self.rules if rule.prefix == prefix]
        reason = f"the longest prefix with rules is {prefix!r}"
        return (
            rights,
            reason,
            [f"{rule.in_words}{'' if rule.is_for(who) else ' (another client)'}" for rule in deciding],
        )


def is_trusted(uid: int | None) -> bool:
    """Whether this is root or the daemon's own user."""
    return uid is not None and uid in (0, os.geteuid()) and uid != OVERFLOW_ID
