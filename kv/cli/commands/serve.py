"""``kv serve``: run the daemon. The command passes the flags on; kvd does the rest."""

import os

from kv.cli.context import Context
from kv.cli.failures import CommandFailed, UsageError
from kv.cli.parser import CommonOptions, Parser, set_completer
from kvd.protocol import exits

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


class Options(CommonOptions):
    """The options of ``kv serve``."""

    daemon: bool = False
    socket_mode: str | None = None
    socket_group: str | None = None
    tcp: list[str] | None = None
    http: list[str] | None = None
    http_open: bool = False
    data_dir: str | None = None
    data_sync: str | None = None
    config: str | None = None
    log_level: str | None = None
    log_to: str | None = None
    check_config: bool = False


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
    set_completer(
        parser.add_argument("--data-dir", metavar="DIR", help="keep every commit there (default: in memory only)"),
        "files",
    )
    set_completer(
        parser.add_argument("--data-sync", metavar="WHEN", help="a commit waits for the disk: always, interval, never"),
        "syncs",
    )
    set_completer(parser.add_argument("--config", metavar="FILE", help="the configuration file"), "files")
    set_completer(
        parser.add_argument("--log-level", metavar="LEVEL", help="debug, info, warning or error (default: info)"),
        "log-levels",
    )
    set_completer(
        parser.add_argument("--log-to", metavar="WHERE", help="auto, stderr, syslog, or a file's path"), "log-targets"
    )
    parser.add_argument("--check-config", action="store_true", help="say whether the configuration is right, and end")


def run(context: Context, options: Options) -> int:
    """Run the daemon until it ends, and return its exit code."""
    if options.socket and options.socket.startswith(("tcp://", "tls://")):
        raise UsageError("--socket is the path of a socket here; to listen on TCP write --tcp HOST:PORT")
    settings = _settings(options)
    try:
        from kvd.service.serve import check_config, serve
    except ImportError as error:
        raise CommandFailed(f"the daemon is not installed completely: {error}", exits.INTERNAL) from None
    if options.check_config:
        status = check_config(settings, options.config)
        if status == exits.OK:
            context.print("The configuration is valid.")
        return status
    return serve(
        settings, options.config, daemon=options.daemon,
        bar=lambda: context.progress("B", "recovering"),
    )  # fmt: skip


def _settings(options: Options) -> dict[str, object]:
    """Return the settings on the command line, by their names in the configuration."""
    settings = {
        # As clients take it. In a configuration, whose user may be another one, ~ is refused.
        "listen.socket": options.socket and os.path.expanduser(options.socket),
        "listen.socket_mode": options.socket_mode,
        "listen.socket_group": options.socket_group,
        "listen.tcp": options.tcp,
        "listen.token_file": options.token_file,
        "http.listen": options.http,
        "http.open": options.http_open or None,
        "data.dir": options.data_dir,
        "data.sync": options.data_sync,
        "log.level": options.log_level,
        "log.to": options.log_to,
    }
    return {name: value for name, value in settings.items() if value is not None}
