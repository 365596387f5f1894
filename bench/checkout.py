"""A checkout to be measured: its interpreter, its command `kv`, and the code that they run."""

import json
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError
from bench.peers.kvd import Kvd
from bench.process import clean_environment, output

DRIVER = Path(__file__).with_name("checkout_driver.py")


@dataclass(frozen=True)
class Checkout:
    """A directory with kvd's source, and the interpreter of the environment that runs it."""

    name: str
    directory: Path
    python: Path

    @classmethod
    def other(cls, directory: Path) -> "Checkout":
        """Return another checkout with the environment that `make` builds in it. Raises BenchError without one."""
        directory = directory.absolute()
        python = directory / ".venv" / "bin" / "python"
        if not directory.is_dir():
            raise BenchError(f"{directory} is not a directory")
        if not python.exists():
            raise BenchError(f"{directory} has no environment in .venv: run `{_set_up(directory)}`")
        return cls("theirs", directory, python)

    def command(self, *words: str) -> list[str]:
        """The command `kv` with these words, run by the interpreter of the checkout."""
        return [str(self.python), str(self.python.with_name("kv")), *words]

    def driver(self, *words: str) -> list[str]:
        """The driver of the client with these words. `-P` keeps the modules of this folder out of its imports."""
        return [str(self.python), "-P", str(DRIVER), *words]

    def daemon(self, *options: str) -> Kvd:
        """The daemon of the checkout, which is not running yet."""
        return Kvd((*self.command("serve", "--socket", "{socket}"), *options))

    def describe(self) -> dict[str, str]:
        """Return name → text: facts that change the figures. Raises BenchError if the environment runs other code."""
        facts: dict[str, str] = json.loads(output(self.driver("describe"), clean_environment()))
        code = Path(facts.pop("code")).resolve()
        if not code.is_relative_to(self.directory.resolve()):
            raise BenchError(
                f"{self.python} does not run the code of {self.directory} but {code}: "
                f"run `rm -r {self.directory}/.venv && {_set_up(self.directory)}`"
            )
        return {"directory": str(self.directory), "commit": self._commit()} | facts

    def _commit(self) -> str:
        try:
            return output(["git", "-C", str(self.directory), "describe", "--always", "--dirty"]).strip()
        except BenchError:
            return "unknown"


def _set_up(directory: Path) -> str:
    return f"make -C {directory} .venv/.kvd"
