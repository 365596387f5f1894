"""How the recovery of a data directory shows a person how far it is. The command line brings a bar on a terminal."""

from typing import Protocol, Self


class ProgressBar(Protocol):
    """Shows how much is done, from its ``__enter__`` to its ``__exit__``."""

    is_visible: bool

    def update(self, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` are done; 0 if the total is not known."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


class NullProgress:
    """Shows nothing."""

    is_visible = False

    def update(self, done: int, total: int) -> None:
        """Show nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """End nothing."""
