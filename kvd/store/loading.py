"""How a store is filled: from a checkpoint, and from the commit log after it."""

from itertools import repeat

from kvd.store.authors import Author
from kvd.store.contents import Contents
from kvd.store.heads import Head
from kvd.store.window import ClockStep


class LoadableContents(Contents):
    """Contents that a recovery can fill."""

    def load(self, keys: list[str], values: list[bytes], versions: list[int]) -> None:
        """Put values of a checkpoint into the store.

        A key comes twice, the newer one last, if it was deleted, removed and set again while the checkpoint was
        written.
        """
        if any(map(self.find, keys)):
            for key, value, version in zip(keys, values, versions, strict=True):
                self.catch_up(version, [(key, value)], 0)
            return
        self._keyspace.put_all(map(Head, keys, values, versions, repeat(None)))
        self._add_to_index(keys)
        self.counters.keys += len(keys)
        self.counters.value_bytes += sum(map(len, values))
        self.largest_value_bytes = max(self.largest_value_bytes, max(map(len, values), default=0))

    def replay(
        self, version: int, time: int, author: Author, commits: int, writes: list[tuple[str, bytes | None]]
    ) -> None:
        """Repeat commits of the log exactly as they were: all under ``version``, or each under the next version.

        The caller must drop history now and then. Raises ValueError if they cannot have been made.
        """
        self._go_on_before(version, time)
        for key, value in writes:
            if value is None and not self.exists(key):
                raise ValueError("it deletes a key that does not exist")
        if len(writes) == 1:
            self._commit_one(*writes[0], author)
        elif commits == 1:
            self._commit(dict(writes), author, [len(value) for _, value in writes if value is not None])
        else:
            stored = [(key, value) for key, value in writes if value is not None]
            if len(stored) != commits:
                raise ValueError("a group of several commits deletes nothing")
            self._commit_each([key for key, _ in stored], [value for _, value in stored], author)

    def replay_kept(self, version: int, time: int, author: Author, keys: list[str]) -> None:
        """Repeat a commit of the log that gave ``keys`` the values that they had. Raises ValueError without one."""
        self._go_on_before(version, time)
        entries = {
            key: value for key in keys if (head := self.find(key)) is not None and (value := head.value) is not None
        }
        if len(entries) < len(keys):
            raise ValueError("it keeps the value of a key that does not exist")
        self._commit_kept(entries, author)

    def _go_on_before(self, version: int, time: int) -> None:
        self.time = max(self.time, time)
        self.go_on_at(version - 1)
        self.version = version - 1  # the first commits may be older than the checkpoint's end

    def catch_up_kept(self, version: int, keys: list[str]) -> None:
        """Apply a commit that kept the values of ``keys``, to those that are older than it, without history.

        A key that is absent was deleted later: before its part of the checkpoint was written.
        """
        kept = ((key, self.find(key)) for key in keys)
        self.catch_up(version, [(key, head.value) for key, head in kept if head is not None], 0)

    def note_step(self, time: int, by: int) -> None:
        """Note that the clock was set, by ``by`` microseconds to ``time``: commit times go on from there."""
        self.window.note_step(ClockStep(self.version, time, by))
        self.time = time

    def catch_up(self, version: int, writes: list[tuple[str, bytes | None]], step: int) -> None:
        """Apply those of ``writes`` that are newer than the checkpoint's values, without history.

        ``step`` is the distance from the version of one write to that of the next.
        """
        for key, value in writes:
            head = self.find(key)
            if version > (0 if head is None else head.version):
                self._overwrite(key, value, version, head)
            version += step

    def _overwrite(self, key: str, value: bytes | None, version: int, head: Head | None) -> None:
        if head is None:
            if value is not None:
                self.load([key], [value], [version])
            return
        self.counters.value_bytes += len(value or b"") - len(head.value or b"")
        if value is None:
            self.counters.keys -= 1
            self._keyspace.remove(key)
            self._living.discard(key)
        else:
            self._keyspace.dict_for(key)[key] = Head(key, value, version, None)
            self.largest_value_bytes = max(self.largest_value_bytes, len(value))

    def go_on_at(self, version: int) -> None:
        """Go on at ``version``, if that is newer: what a crash took between it and the last commit is lost."""
        if version > self.version:
            self.window.note_lost(self.version + 1, version - 1)
            self.version = version

    def begin_history(self, version: int, time: int) -> None:
        """Begin the history at ``version``: no older version can be read."""
        self.version = self.window.oldest_readable = version
        self.time = self.window.oldest_time = time
        self.window.forget_steps()
