"""The options that the commands that write have in common: how long keys live, and whether to wait for the disk."""

from kv.cli.parser import CommonOptions, Parser, set_completer


class SyncOption(CommonOptions):
    """Whether to wait until the commit is on the disk; None: as the daemon is configured."""

    sync: bool | None = None


class WriteOptions(SyncOption):
    """How to write: also how long the keys live; None: without end."""

    ttl_s: float | None = None
    keep_ttl: bool = False


def add_lifetime(parser: Parser) -> None:
    """Add the options for how long the written keys live."""
    set_completer(
        parser.add_argument(
            "--ttl", dest="ttl_s", metavar="DURATION", type=_ttl_s,
            help="delete the keys after so long: 10m, 1h30m, 500ms, 2d, seconds",
        ),
        "durations",
    )  # fmt: skip
    parser.add_argument(
        "--keep-ttl", action="store_true", help="keys that exist keep their end; --ttl is for new ones then"
    )


def add_sync(parser: Parser) -> None:
    """Add the options for whether to wait until the commit is on the disk."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--sync", action="store_true", help="wait until it is on the disk, however the daemon is configured"
    )
    group.add_argument("--no-sync", dest="sync", action="store_false", help="do not wait for that")


def _ttl_s(text: str) -> float:
    from kv.cli.durations import duration_s

    return duration_s(text, "--ttl")
