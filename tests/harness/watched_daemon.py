"""A daemon that is looked at over one connection from its start to its end, the canary's."""

import pathlib
from typing import Any

from tests.harness.daemon import Daemon
from tests.harness.raw_peer import RawPeer
from tests.harness.real_daemon import TOKEN
from tests.harness.waiting import eventually


class WatchedDaemon(Daemon):
    """It never serves fewer connections than one, and what looks at it opens no further ones."""

    def __init__(self, folder: pathlib.Path, configuration: str = "", *, tcp: bool = False) -> None:
        if tcp:
            token = folder / "token"
            token.write_text(TOKEN)
            token.chmod(0o600)
            configuration += f'\nlisten.tcp = ["127.0.0.1:0"]\nlisten.token_file = "{token}"\n'
        super().__init__(folder, configuration)
        try:
            self.canary = self._resources.enter_context(RawPeer.unix(self.path))
            assert self.canary.ask(["ping"]) == [True]
            self.tcp_port = int(str(self.status()["listening"]).rpartition(":")[2]) if tcp else 0
        except BaseException:
            self.clean_up()
            raise

    def greeted(self) -> RawPeer:
        """A connection over TCP that has said hello with the token."""
        peer = self.stranger()
        assert peer.ask(["hello", 1, "test", TOKEN])[0][0] == 1
        return peer

    def stranger(self) -> RawPeer:
        """A connection over TCP that has not said hello."""
        return self.connect_tcp(self.tcp_port)

    def ask(self, *requests: object) -> Any:  # noqa: ANN401 - whatever the daemon replies
        """The replies to one frame on the canary's connection."""
        return self.canary.ask(*requests)

    def metrics(self) -> dict[str, int]:
        """Its counters."""
        return dict(self.ask(["metrics"])[0])

    def connections(self) -> int:
        """How many connections there are besides the canary's."""
        return int(self.status()["connections"]) - 1

    def counts(self, connections: int) -> None:
        """Wait until there is this number of connections besides the canary's."""
        eventually(lambda: self.connections() == connections, f"for {connections} connections")

    def has_read(self) -> None:
        """Return once it has read all that was sent to it before, on any connection that it reads from."""
        for _ in range(2):  # the first may be answered in the same turn of its loop, before the others
            assert self.ask(["ping"]) == [True]

    def see_it_end(self) -> None:
        """Stop it; until now it must have been the same process."""
        try:
            if self.process.poll() is None:
                assert self.status()["pid"] == self.process.pid
        finally:
            super().see_it_end()
