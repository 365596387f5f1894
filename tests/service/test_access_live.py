"""Access rules of a running daemon: for real users, and changed by SIGHUP while they are connected."""

import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

import kv
from tests.harness.daemon import Daemon, new_folders
from tests.harness.processes import ROOT
from tests.harness.waiting import DEADLINE_S, eventually

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")

READERS = '[listen]\nsocket_mode = "0666"\n[[access]]\neveryone = true\nrights = ["read"]\n'
OWN = '[[access]]\nprefix = "own/"\nuid = 5001\nrights = ["read", "write", "watch", "cache"]\n'
BY_GROUP = '[[access]]\nprefix = "group/"\ngid = 7001\nrights = ["read", "write"]\n'

# Runs as another user: executes each line of stdin as a Python statement, and prints ok or the code of the error.
OTHER_USER = """
import os, sys
uid, groups, address = int(sys.argv[1]), [int(gid) for gid in sys.argv[2].split(",") if gid], sys.argv[3]
import kv, kv.near_cache.blocking, kv.blocking.watch, kv.api.procedures, kv.api.transactions, msgspec, select
os.setgroups(groups); os.setgid(uid); os.setuid(uid)
db, near, watch = kv.connect(address), kv.connect(address, near_cache=True), None
for line in sys.stdin:
    try:
        exec(line)
        answer = "ok"
    except kv.KvdError as error:
        answer = error.code
    print(answer, flush=True)
"""


class OtherUser:
    """A process of another user."""

    def __init__(self, address: str, uid: int, *groups: int) -> None:
        self.process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", OTHER_USER, str(uid), ",".join(map(str, groups)), address],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def does(self, statement: str) -> str:
        """Run a statement; return "ok" or the code of the error."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(statement + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        self.process.communicate(timeout=DEADLINE_S)


class RuledDaemon(Daemon):
    """A daemon whose rules can be changed, and processes of other users that use it."""

    def __init__(self, folder: pathlib.Path) -> None:
        folder.chmod(0o755)  # other users must be able to reach the socket
        super().__init__(folder, READERS + OWN + BY_GROUP)
        self.db = self._resources.enter_context(kv.connect(self.address))

    def reload(self, rules: str) -> None:
        """Write other rules and send SIGHUP. Returns before the daemon has read them."""
        self.configure(rules)
        self.process.send_signal(signal.SIGHUP)

    def user(self, uid: int, *groups: int) -> OtherUser:
        """Start a process of another user."""
        user = OtherUser(self.address, uid, *groups)
        self._resources.callback(user.end)
        return user


@pytest.fixture
def daemon() -> Iterator[RuledDaemon]:
    with new_folders() as new_folder, RuledDaemon(new_folder()) as ruled:
        yield ruled


def becomes(user: OtherUser, statement: str, expected: str) -> bool:
    """Repeat the statement until its result is ``expected``."""
    eventually(lambda: user.does(statement) == expected)
    return True


def test_rules_apply_to_the_uid_and_groups_that_the_kernel_reports(daemon: RuledDaemon) -> None:
    owner, other, member = daemon.user(5001), daemon.user(5002), daemon.user(5002, 7001)
    keys = ("own/a", "a", "group/a")
    assert [owner.does(f"db.set('{key}', b'1')") for key in keys] == ["ok", "forbidden", "forbidden"]
    assert [other.does(f"db.set('{key}', b'1')") for key in keys] == ["forbidden"] * 3
    assert member.does("db.set('group/a', b'1')") == "ok", "a supplementary group counts"
    assert [other.does(f"db.get('{key}')") for key in keys] == ["forbidden", "ok", "forbidden"]
    daemon.db.set("a", b"by root")


def test_root_may_do_everything(daemon: RuledDaemon) -> None:
    daemon.db.set_many({"own/a": b"1", "a": b"1", "group/a": b"1"})
    assert len(list(daemon.db.scan())) == 3


def test_the_overflow_uid_matches_no_rule(daemon: RuledDaemon) -> None:
    daemon.reload(READERS.replace("everyone = true", "uid = 5002"))
    unknown = daemon.user(65534)
    assert becomes(unknown, "db.get('a')", "forbidden")


def test_a_revoked_right_is_gone_for_open_connections(daemon: RuledDaemon) -> None:
    owner = daemon.user(5001)
    assert owner.does("db.set('own/a', b'1')") == "ok"
    daemon.reload(READERS)
    assert becomes(owner, "db.set('own/a', b'2')", "forbidden")
    assert owner.does("db.get('own/a')") == "ok", "everyone may still read"
    daemon.reload(READERS + OWN)
    assert becomes(owner, "db.set('own/a', b'3')", "ok")


def test_a_near_cache_drops_a_key_that_may_no_longer_be_read(daemon: RuledDaemon) -> None:
    owner = daemon.user(5001)
    daemon.db.set("own/a", b"1")
    for _ in range(3):
        assert owner.does("assert near.get('own/a') == b'1'") == "ok"
    # Two hits at once on a quiet machine; on a busy one the lease may lapse in between, and a read misses.
    hits = "near.get('own/a') == b'1' and near.near_cache.stats().hits >= 2"
    assert owner.does(f"assert any({hits} for _ in range(10_000))") == "ok"
    daemon.reload(READERS.replace("everyone = true", "uid = 5002"))
    assert becomes(owner, "near.get('own/a')", "forbidden")


def test_a_watch_ends_when_its_right_is_revoked(daemon: RuledDaemon) -> None:
    owner = daemon.user(5001)
    assert owner.does("watch = db.watch('own/'); ruled = watch.wait(0)") == "ok"
    daemon.db.set("own/a", b"1")
    assert owner.does(f"assert watch.wait({DEADLINE_S}) is not None") == "ok"
    daemon.reload(READERS)
    assert becomes(owner, f"watch.wait({DEADLINE_S})", "forbidden")
    daemon.db.set("own/a", b"2")
    assert owner.does("db.watch('own/').wait(0)") == "forbidden", "another watch is denied, too"


def test_completion_does_not_offer_keys_that_may_not_be_read(daemon: RuledDaemon) -> None:
    daemon.db.set_many({"own/a": b"1", "own/b": b"1"})
    offered = "from kv.cli.live_keys import live_keys, live_commits; offered = live_keys('own/', address, None)"
    owner, other = daemon.user(5001), daemon.user(5002)
    assert owner.does(f"{offered}; assert offered == ['own/a', 'own/b'], offered") == "ok"
    for prefix in ("own/", "ow", "o", ""):
        assert other.does(f"{offered.replace('own/', prefix)}; assert offered == [], offered") == "ok"
    assert other.does("assert live_commits(10, address, None) == []") == "ok"
    assert other.does("list(db.scan('own/'))") == "forbidden"


def test_a_connection_keeps_the_rights_of_the_user_that_opened_it(daemon: RuledDaemon) -> None:
    """docs/access.md says so about sockets that are passed on and processes that change their user."""
    packed = b"\x91\x92\xa3set\x81\xa5own/a\xc4\x01x"
    passed = f"""if True:
        import os, socket, sys
        connected = socket.socket(socket.AF_UNIX); connected.connect({daemon.address!r})
        os.setgroups([]); os.setgid(5002); os.setuid(5002)
        connected.sendall({(len(packed).to_bytes(4, "big") + packed)!r})
        sys.exit(b"forbidden" in connected.recv(1000))
    """
    done = subprocess.run([sys.executable, "-c", passed], timeout=DEADLINE_S, check=False)  # noqa: S603
    assert done.returncode == 0
    assert daemon.db.get("own/a") == b"x"
    assert daemon.user(5002).does("db.set('own/a', b'y')") == "forbidden"


@pytest.mark.parametrize("mistake", ["rights = ['read']\n", "everyone = true\nrights = ['reed']\n"])
def test_a_reload_of_invalid_rules_changes_nothing(daemon: RuledDaemon, mistake: str) -> None:
    owner = daemon.user(5001)
    daemon.reload(READERS + "[[access]]\n" + mistake)
    with pytest.raises(kv.KvdError, match="nothing was changed"):
        daemon.db.reload()
    assert owner.does("db.set('own/a', b'1')") == "ok"


def test_a_denied_refresh_does_not_fail_the_call_that_carries_it(daemon: RuledDaemon) -> None:
    """A near cache refreshes a changed key along with the next call, which must succeed even if that is denied."""
    may_write = '[[access]]\nprefix = "w/"\nuid = 5001\nrights = ["read", "write"]\n'
    daemon.reload(READERS + OWN + may_write)
    owner = daemon.user(5001)
    assert becomes(owner, "db.set('w/a', b'0')", "ok")
    daemon.db.set_many({"own/a": b"1", "a": b"1"})
    for number in range(3):  # read and changed again and again, so that the near cache refreshes it
        assert owner.does(f"assert near.get('own/a') == b'{number or 1}'") == "ok"
        daemon.db.set("own/a", b"%d" % (number + 1))
    daemon.reload(READERS + may_write + OWN.replace("5001", "5003"))
    assert becomes(owner, "db.get('own/a')", "forbidden")
    daemon.db.set("own/a", b"9")
    assert owner.does("assert near.get('a') == b'1'") == "ok"
    assert owner.does("near.set('w/a', b'2'); assert near.get('w/a') == b'2'") == "ok"
    assert owner.does("near.get('own/a')") == "forbidden"
    assert owner.does("assert near.get('a') == b'1'") == "ok"
