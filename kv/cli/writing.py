"""What the commands that write have in common: how long it shall live, and whether to wait for the disk."""

from kv.cli.parser import Options, Parser, completed


class How:
    """What a command line says about its writes; None and False where it says nothing."""

    __slots__ = ("keep_ttl", "sync", "ttl_s")

    def __init__(self, options: Options) -> None:
        self.ttl_s: float | None = getattr(options, "ttl", None)
        self.keep_ttl: bool = getattr(options, "keep_ttl", False)
        self.sync: bool | None = getattr(options, "sync", None)


def add_lifetime(parser: Parser) -> None:
    """The options for how long what is written shall live."""
    completed(
        parser.add_argument(
            "--ttl", metavar="DURATION", type=_ttl, help="delete the keys after so long: 10m, 1h30m, 500ms, 2d, seconds"
        ),
        "durations",
    )
    parser.add_argument(
        "--keep-ttl", action="store_true", help="keys that exist keep their end; --ttl is for new ones then"
    )


def add_sync(parser: Parser) -> None:
    """The options for whether to wait until the commit is on the disk."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--sync", action="store_true", help="wait until it is on the disk, however the daemon is configured"
    )
    group.add_argument("--no-sync", dest="sync", action="store_false", help="do not wait for that")


def _ttl(text: str) -> float:
    from kv.cli.durations import duration_s

    return duration_s(text, "--ttl")
