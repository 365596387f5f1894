"""Rules on a running daemon: for real users, and changed by SIGHUP while they are connected."""

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

# Does what it is told on stdin, a Python expression a line, as somebody else; prints what came of it.
SOMEBODY = """
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


class Somebody:
    """A process of another user."""

    def __init__(self, address: str, uid: int, *groups: int) -> None:
        self.process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", SOMEBODY, str(uid), ",".join(map(str, groups)), address],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def does(self, statement: str) -> str:
        """Run a statement; "ok", or the code of the error."""
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
        folder.chmod(0o755)  # others must get to the socket
        super().__init__(folder, READERS + OWN + BY_GROUP)
        self.db = self._resources.enter_context(kv.connect(self.address))

    def reload(self, rules: str) -> None:
        """Have it read other rules, by SIGHUP."""
        self.configure(rules)
        self.process.send_signal(signal.SIGHUP)

    def somebody(self, uid: int, *groups: int) -> Somebody:
        """A process of another user."""
        person = Somebody(self.address, uid, *groups)
        self._resources.callback(person.end)
        return person


@pytest.fixture
def daemon() -> Iterator[RuledDaemon]:
    with new_folders() as new_folder, RuledDaemon(new_folder()) as ruled:
        yield ruled


def becomes(somebody: Somebody, statement: str, wanted: str) -> bool:
    """Wait until the statement comes to ``wanted``."""
    eventually(lambda: somebody.does(statement) == wanted)
    return True


def test_the_kernel_says_who_it_is(daemon: RuledDaemon) -> None:
    owner, other, member = daemon.somebody(5001), daemon.somebody(5002), daemon.somebody(5002, 7001)
    keys = ("own/a", "a", "group/a")
    assert [owner.does(f"db.set('{key}', b'1')") for key in keys] == ["ok", "forbidden", "forbidden"]
    assert [other.does(f"db.set('{key}', b'1')") for key in keys] == ["forbidden"] * 3
    assert member.does("db.set('group/a', b'1')") == "ok", "a supplementary group counts"
    assert [other.does(f"db.get('{key}')") for key in keys] == ["forbidden", "ok", "forbidden"]
    daemon.db.set("a", b"by root")


def test_root_is_not_asked(daemon: RuledDaemon) -> None:
    daemon.db.set_many({"own/a": b"1", "a": b"1", "group/a": b"1"})
    assert len(list(daemon.db.scan())) == 3


def test_one_who_cannot_be_named_matches_no_rule(daemon: RuledDaemon) -> None:
    daemon.reload(READERS.replace("everyone = true", "uid = 5002"))
    nobody = daemon.somebody(65534)
    assert becomes(nobody, "db.get('a')", "forbidden")


def test_a_right_that_is_taken_away_is_gone_for_open_connections(daemon: RuledDaemon) -> None:
    owner = daemon.somebody(5001)
    assert owner.does("db.set('own/a', b'1')") == "ok"
    daemon.reload(READERS)
    assert becomes(owner, "db.set('own/a', b'2')", "forbidden")
    assert owner.does("db.get('own/a')") == "ok", "everyone may still read"
    daemon.reload(READERS + OWN)
    assert becomes(owner, "db.set('own/a', b'3')", "ok")


def test_a_near_cache_forgets_what_may_not_be_read_any_more(daemon: RuledDaemon) -> None:
    owner = daemon.somebody(5001)
    daemon.db.set("own/a", b"1")
    for _ in range(3):
        assert owner.does("assert near.get('own/a') == b'1'") == "ok"
    assert owner.does("assert near.near_cache.stats().hits == 2") == "ok"
    daemon.reload(READERS.replace("everyone = true", "uid = 5002"))
    assert becomes(owner, "near.get('own/a')", "forbidden")


def test_a_watch_that_is_not_allowed_any_more_ends(daemon: RuledDaemon) -> None:
    owner = daemon.somebody(5001)
    assert owner.does("watch = db.watch('own/'); house = watch.wait(0)") == "ok"
    daemon.db.set("own/a", b"1")
    assert owner.does(f"assert watch.wait({DEADLINE_S}) is not None") == "ok"
    daemon.reload(READERS)
    assert becomes(owner, f"watch.wait({DEADLINE_S})", "forbidden")
    daemon.db.set("own/a", b"2")
    assert owner.does("db.watch('own/').wait(0)") == "forbidden", "nor does another begin"


def test_what_one_may_not_read_is_not_offered_for_completion(daemon: RuledDaemon) -> None:
    daemon.db.set_many({"own/a": b"1", "own/b": b"1"})
    offered = "from kv.cli.live_keys import live_keys, live_commits; offered = live_keys('own/', address, None)"
    owner, other = daemon.somebody(5001), daemon.somebody(5002)
    assert owner.does(f"{offered}; assert offered == ['own/a', 'own/b'], offered") == "ok"
    for prefix in ("own/", "ow", "o", ""):
        assert other.does(f"{offered.replace('own/', prefix)}; assert offered == [], offered") == "ok"
    assert other.does("assert live_commits(10, address, None) == []") == "ok"
    assert other.does("list(db.scan('own/'))") == "forbidden"


def test_a_connection_keeps_the_rights_of_whoever_made_it(daemon: RuledDaemon) -> None:
    """As docs/access.md says of sockets that are passed on, and of processes that become somebody else."""
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
    assert daemon.somebody(5002).does("db.set('own/a', b'y')") == "forbidden"


@pytest.mark.parametrize("mistake", ["rights = ['read']\n", "everyone = true\nrights = ['reed']\n"])
def test_a_reload_of_wrong_rules_changes_nothing(daemon: RuledDaemon, mistake: str) -> None:
    owner = daemon.somebody(5001)
    daemon.reload(READERS + "[[access]]\n" + mistake)
    with pytest.raises(kv.KvdError, match="nothing was changed"):
        daemon.db.reload()
    assert owner.does("db.set('own/a', b'1')") == "ok"


def test_a_key_that_may_not_be_read_any_more_takes_along_no_other_call(daemon: RuledDaemon) -> None:
    """A near cache fetches what it has lost along with whatever is asked next; that one is not refused for it."""
    may_write = '[[access]]\nprefix = "w/"\nuid = 5001\nrights = ["read", "write"]\n'
    daemon.reload(READERS + OWN + may_write)
    owner = daemon.somebody(5001)
    assert becomes(owner, "db.set('w/a', b'0')", "ok")
    daemon.db.set_many({"own/a": b"1", "a": b"1"})
    for number in range(3):  # in demand: read, and found changed
        assert owner.does(f"assert near.get('own/a') == b'{number or 1}'") == "ok"
        daemon.db.set("own/a", b"%d" % (number + 1))
    daemon.reload(READERS + may_write + OWN.replace("5001", "5003"))
    assert becomes(owner, "db.get('own/a')", "forbidden")
    daemon.db.set("own/a", b"9")
    assert owner.does("assert near.get('a') == b'1'") == "ok"
    assert owner.does("near.set('w/a', b'2'); assert near.get('w/a') == b'2'") == "ok"
    assert owner.does("near.get('own/a')") == "forbidden"
    assert owner.does("assert near.get('a') == b'1'") == "ok"
