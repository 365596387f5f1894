"""``kv access``: what a user may do with a key, and which rules decide that."""

import grp
import pwd

from kv.cli.context import Context, checked_key, checked_text
from kv.cli.escape import show
from kv.cli.failures import UsageError
from kv.cli.parser import CommonOptions, Parser, set_completer
from kvd.protocol import exits

USAGE = "kv access [OPTION]... USER KEY"
EXAMPLES = """
kv access www-data app/theme        what www-data may do with it, and why
kv access 33 app/theme              the same, by number
kv access group:deploy app/theme    somebody who is in that group, and nothing else
kv access token:ci app/theme        with this token, on TCP
kv access certificate:web app/x     with this certificate
kv access --json www-data app/x     one JSON object
"""
DETAILS = """
USER is a user's name or number on this host, group:NAME, token:NAME or certificate:NAME. A user has the
groups that it would log in with. The daemon answers by the rules that hold now ([[access]] in its configuration). For
administrators only.

The exit code is 0 if USER may read KEY, else 1.
"""


class Options(CommonOptions):
    """The options of ``kv access``."""

    user: str | None = None
    key: str | None = None
    json: bool = False


def arguments(parser: Parser) -> None:
    """The options of ``kv access``."""
    who = "who: a name, a number, group:, token: or certificate:NAME"
    user = parser.add_argument("user", metavar="USER", nargs="?", default=None, help=who)
    key = parser.add_argument("key", metavar="KEY", nargs="?", default=None, help="which key")
    set_completer(user, "user-then-key")
    set_completer(key, "user-then-key")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(context: Context, options: Options) -> int:
    """Print the decision and the rules behind it."""
    if options.user is None or options.key is None:
        raise UsageError("who, and which key? kv access USER KEY")
    uid, gids, certificate, token = _identity(options.user)
    key = checked_key(options.key)
    with context.connect() as client:
        decision = client.access(key, uid=uid, gids=gids, certificate=certificate, token=token)
    may_read = "read" in decision["rights"]
    if options.json:
        context.print_json(decision)
    else:
        rights = ", ".join(map(show, decision["rights"])) or "nothing"
        context.print(f"{show(checked_text(options.user, 'a name'))} may with {show(key)}: {rights}")
        context.print(f"because: {show(decision['reason'])}")
        for rule in decision["rules"]:
            context.print(f"  {show(rule)}")
    return exits.OK if may_read else exits.NOT_FOUND


def _identity(user: str) -> tuple[int | None, list[int], str | None, str | None]:
    """Return the uid, gids, certificate and token that ``user`` stands for. Raises UsageError."""
    kind, colon, name = checked_text(user, "a name").partition(":")
    if colon and kind == "token":
        return None, [], None, name
    if colon and kind == "certificate":
        return None, [], name, None
    if colon and kind == "group":
        return None, [_gid(name)], None, None
    try:
        entry = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except (KeyError, OverflowError):
        if user.isdecimal() and int(user) < 2**32:
            return int(user), [], None, None
        raise UsageError(f"there is no user {user!r} on this host") from None
    groups = {entry.pw_gid, *(group.gr_gid for group in grp.getgrall() if entry.pw_name in group.gr_mem)}
    return entry.pw_uid, sorted(groups), None, None


def _gid(group: str) -> int:
    """Return the gid of a group, given by name or number. Raises UsageError."""
    if group.isdecimal() and int(group) < 2**32:
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise UsageError(f"there is no group {group!r} on this host") from None
