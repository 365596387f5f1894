"""The command line as a person runs it."""

import subprocess

from tests.harness.processes import KV, Completed, Process, environment
from tests.harness.waiting import DEADLINE_S


class Kv:
    """``kv`` with the address of one daemon, or with none; and with these variables."""

    command = KV

    def __init__(self, socket: str | None, **variables: str) -> None:
        self.socket = socket
        self._variables = variables

    def environment(self, **more: str) -> dict[str, str]:
        """The environment that the command has, for tests that start it in a way of their own."""
        address = {} if self.socket is None else {"KVD_SOCKET": self.socket}
        return environment(**self._variables | address | more)

    def __call__(self, *arguments: str | bytes, stdin: bytes = b"", **more: str) -> Completed:
        """Run the command to its end."""
        return subprocess.run(  # noqa: S603 - the command under test
            [*KV, *arguments], input=stdin, capture_output=True, env=self.environment(**more), timeout=DEADLINE_S,
            check=False,
        )  # fmt: skip

    def ok(self, *arguments: str | bytes, stdin: bytes = b"", **more: str) -> str:
        """Run the command, which must succeed and print nothing on stderr; what it printed."""
        done = self(*arguments, stdin=stdin, **more)
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout.decode()

    def fails(self, status: int, *arguments: str | bytes, stdin: bytes = b"", **more: str) -> str:
        """Run the command, which must end with ``status``, print nothing, and write one line on stderr; that line."""
        done = self(*arguments, stdin=stdin, **more)
        error = done.stderr.decode()
        assert (done.returncode, done.stdout) == (status, b""), error
        assert error.startswith("kv: error: ")
        assert error.count("\n") == 1
        return error

    def start(self, *arguments: str, **options: object) -> Process:
        """Start the command; the test ends it."""
        settings: dict[str, object] = {"env": self.environment(), **options}
        return subprocess.Popen([*KV, *arguments], **settings)  # type: ignore[call-overload, no-any-return]  # noqa: S603 - the command under test
