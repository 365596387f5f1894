"""``kv serve``: run the daemon. The flags are handed on; everything else is the daemon's own."""

from kv.cli import exits
from kv.cli.context import Context
from kv.cli.failures import CommandFailed, UsageError
from kv.cli.parser import Parser, completed

USAGE = "kv serve [OPTION]..."
EXAMPLES = """
kv serve                            in the foreground; ctrl-c stops it
kv serve --daemon                   in the background; returns when it answers
kv serve -d --socket /tmp/my.sock   somewhere else
kv serve -d --data-dir ~/kvd        every commit is on the disk before it is acknowledged
kv serve --http 127.0.0.1:4000 --http-open   also over HTTP, for any user of this host
kv serve --check-config             is the configuration right?
"""
DETAILS = """
A flag goes before the environment (KVD_*), that before the configuration file, that before the default. Options that
are not here are in the file. TCP needs --token-file or certificates of clients, and beyond loopback also TLS, which is
configured in the file.
"""
# Command-line options, and the settings that they are.
_SETTINGS = {
    "socket": "listen.socket",
    "socket_mode": "listen.socket_mode",
    "socket_group": "listen.socket_group",
    "tcp": "listen.tcp",
    "token_file": "listen.token_file",
    "http": "http.listen",
    "data_dir": "data.dir",
    "data_sync": "data.sync",
    "log_level": "log.level",
    "log_to": "log.to",
}


def arguments(parser: Parser) -> None:
    """The options of ``kv serve``."""
    parser.add_argument("-d", "--daemon", action="store_true", help="run in the background; return when it answers")
    parser.add_argument("--socket-mode", metavar="MODE", help="permissions of the socket, octal (default: 0600)")
    parser.add_argument("--socket-group", metavar="GROUP", help="the group that owns the socket")
    parser.add_argument(
        "--tcp", action="append", metavar="HOST:PORT", help="listen there too; may be given more than once"
    )
    parser.add_argument(
        "--http", action="append", metavar="WHERE", help="speak HTTP at HOST:PORT or a socket's path (kvd[http])"
    )
    parser.add_argument("--http-open", action="store_true", help="HTTP on loopback for any local user, without a token")
    completed(
        parser.add_argument("--data-dir", metavar="DIR", help="keep every commit there (default: in memory only)"),
        "files",
    )
    completed(
        parser.add_argument("--data-sync", metavar="WHEN", help="a commit waits for the disk: always, interval, never"),
        "syncs",
    )
    completed(parser.add_argument("--config", metavar="FILE", help="the configuration file"), "files")
    completed(
        parser.add_argument("--log-level", metavar="LEVEL", help="debug, info, warning or error (default: info)"),
        "log-levels",
    )
    completed(
        parser.add_argument("--log-to", metavar="WHERE", help="auto, stderr, syslog, or a file's path"), "log-targets"
    )
    parser.add_argument("--check-config", action="store_true", help="say whether the configuration is right, and end")


def run(context: Context) -> int:
    """Run the daemon until it ends; its exit code."""
    options = context.options
    if options.socket and options.socket.startswith(("tcp://", "tls://")):
        raise UsageError("--socket is the path of a socket here; to listen on TCP write --tcp HOST:PORT")
    given = {setting: getattr(options, name, None) for name, setting in _SETTINGS.items()}
    flags: dict[str, object] = {setting: value for setting, value in given.items() if value is not None}
    if getattr(options, "http_open", False):
        flags["http.open"] = True
    config_file: str | None = getattr(options, "config", None)
    try:
        from kvd.service.serve import check_config, serve
    except ImportError as error:
        raise CommandFailed(f"the daemon is not installed completely: {error}", exits.INTERNAL) from None
    if getattr(options, "check_config", False):
        status = check_config(flags, config_file)
        if status == exits.OK:
            context.print("The configuration is valid.")
        return status
    from kv.cli.progress import bar

    return serve(
        flags, config_file, daemon=getattr(options, "daemon", False),
        bar=lambda: bar("B", "recovering", quiet=options.quiet),
    )  # fmt: skip
