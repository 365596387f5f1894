"""Rules on a running daemon: for real users, and changed by SIGHUP while they are connected."""

import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import pytest

import kv
from tests.harness.daemon import Daemon
from tests.harness.processes import ROOT
from tests.harness.waiting import DEADLINE_S

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


class House:
    """A daemon whose rules can be changed."""

    def __init__(self, folder: str) -> None:
        os.chmod(folder, 0o755)  # noqa: S103  # others have to get to the socket
        self.config = pathlib.Path(folder, "kvd.toml")
        self.write(READERS + OWN + BY_GROUP)
        self.daemon = Daemon(folder, "--config", str(self.config))
        self.db = kv.connect(self.daemon.address)
        self.people: list[Somebody] = []

    def write(self, rules: str) -> None:
        self.config.write_text(rules)
        self.config.chmod(0o600)

    def reload(self, rules: str) -> None:
        """By SIGHUP; returns when it has been read, by the daemon's own word."""
        self.write(rules)
        self.daemon.process.send_signal(signal.SIGHUP)

    def somebody(self, uid: int, *groups: int) -> Somebody:
        self.people.append(Somebody(self.daemon.address, uid, *groups))
        return self.people[-1]

    def end(self) -> None:
        for person in self.people:
            person.end()
        self.db.close()
        self.daemon.end()


@pytest.fixture
def house() -> Iterator[House]:
    with tempfile.TemporaryDirectory() as folder:
        made = House(folder)
        yield made
        made.end()


def becomes(somebody: Somebody, statement: str, wanted: str) -> bool:
    """Whether the statement comes to ``wanted`` before the time is over."""
    end = time.monotonic() + DEADLINE_S
    while (answer := somebody.does(statement)) != wanted:
        if time.monotonic() > end:
            return answer == wanted
    return True


def test_the_kernel_says_who_it_is(house: House) -> None:
    owner, other, member = house.somebody(5001), house.somebody(5002), house.somebody(5002, 7001)
    keys = ("own/a", "a", "group/a")
    assert [owner.does(f"db.set('{key}', b'1')") for key in keys] == ["ok", "forbidden", "forbidden"]
    assert [other.does(f"db.set('{key}', b'1')") for key in keys] == ["forbidden"] * 3
    assert member.does("db.set('group/a', b'1')") == "ok", "a supplementary group counts"
    assert [other.does(f"db.get('{key}')") for key in keys] == ["forbidden", "ok", "forbidden"]
    house.db.set("a", b"by root")


def test_root_is_not_asked(house: House) -> None:
    house.db.set_many({"own/a": b"1", "a": b"1", "group/a": b"1"})
    assert len(list(house.db.scan())) == 3


def test_one_who_cannot_be_named_matches_no_rule(house: House) -> None:
    house.reload(READERS.replace("everyone = true", "uid = 5002"))
    nobody = house.somebody(65534)
    assert becomes(nobody, "db.get('a')", "forbidden")


def test_a_right_that_is_taken_away_is_gone_for_open_connections(house: House) -> None:
    owner = house.somebody(5001)
    assert owner.does("db.set('own/a', b'1')") == "ok"
    house.reload(READERS)
    assert becomes(owner, "db.set('own/a', b'2')", "forbidden")
    assert owner.does("db.get('own/a')") == "ok", "everyone may still read"
    house.reload(READERS + OWN)
    assert becomes(owner, "db.set('own/a', b'3')", "ok")


def test_a_near_cache_forgets_what_may_not_be_read_any_more(house: House) -> None:
    owner = house.somebody(5001)
    house.db.set("own/a", b"1")
    for _ in range(3):
        assert owner.does("assert near.get('own/a') == b'1'") == "ok"
    assert owner.does("assert near.near_cache.stats().hits == 2") == "ok"
    house.reload(READERS.replace("everyone = true", "uid = 5002"))
    assert becomes(owner, "near.get('own/a')", "forbidden")


def test_a_watch_that_is_not_allowed_any_more_ends(house: House) -> None:
    owner = house.somebody(5001)
    assert owner.does("watch = db.watch('own/'); house = watch.wait(0)") == "ok"
    house.db.set("own/a", b"1")
    assert owner.does(f"assert watch.wait({DEADLINE_S}) is not None") == "ok"
    house.reload(READERS)
    assert becomes(owner, f"watch.wait({DEADLINE_S})", "forbidden")
    house.db.set("own/a", b"2")
    assert owner.does("db.watch('own/').wait(0)") == "forbidden", "nor does another begin"


def test_what_one_may_not_read_is_not_offered_for_completion(house: House) -> None:
    house.db.set_many({"own/a": b"1", "own/b": b"1"})
    offered = "from kv.cli.live_keys import live_keys, live_commits; offered = live_keys('own/', address, None)"
    owner, other = house.somebody(5001), house.somebody(5002)
    assert owner.does(f"{offered}; assert offered == ['own/a', 'own/b'], offered") == "ok"
    for prefix in ("own/", "ow", "o", ""):
        assert other.does(f"{offered.replace('own/', prefix)}; assert offered == [], offered") == "ok"
    assert other.does("assert live_commits(10, address, None) == []") == "ok"
    assert other.does("list(db.scan('own/'))") == "forbidden"


def test_a_connection_keeps_the_rights_of_whoever_made_it(house: House) -> None:
    """As docs/access.md says of sockets that are passed on, and of processes that become somebody else."""
    packed = b"\x91\x92\xa3set\x81\xa5own/a\xc4\x01x"
    passed = f"""if True:
        import os, socket, sys
        connected = socket.socket(socket.AF_UNIX); connected.connect({house.daemon.address!r})
        os.setgroups([]); os.setgid(5002); os.setuid(5002)
        connected.sendall({(len(packed).to_bytes(4, "big") + packed)!r})
        sys.exit(b"forbidden" in connected.recv(1000))
    """
    done = subprocess.run([sys.executable, "-c", passed], timeout=DEADLINE_S, check=False)  # noqa: S603
    assert done.returncode == 0
    assert house.db.get("own/a") == b"x"
    assert house.somebody(5002).does("db.set('own/a', b'y')") == "forbidden"


@pytest.mark.parametrize("mistake", ["rights = ['read']\n", "everyone = true\nrights = ['reed']\n"])
def test_a_reload_of_wrong_rules_changes_nothing(house: House, mistake: str) -> None:
    owner = house.somebody(5001)
    house.reload(READERS + "[[access]]\n" + mistake)
    with pytest.raises(kv.KvdError, match="nothing was changed"):
        house.db.reload()
    assert owner.does("db.set('own/a', b'1')") == "ok"


def test_a_key_that_may_not_be_read_any_more_takes_along_no_other_call(house: House) -> None:
    """A near cache fetches what it has lost along with whatever is asked next; that one is not refused for it."""
    may_write = '[[access]]\nprefix = "w/"\nuid = 5001\nrights = ["read", "write"]\n'
    house.reload(READERS + OWN + may_write)
    owner = house.somebody(5001)
    assert becomes(owner, "db.set('w/a', b'0')", "ok")
    house.db.set_many({"own/a": b"1", "a": b"1"})
    for number in range(3):  # in demand: read, and found changed
        assert owner.does(f"assert near.get('own/a') == b'{number or 1}'") == "ok"
        house.db.set("own/a", b"%d" % (number + 1))
    house.reload(READERS + may_write + OWN.replace("5001", "5003"))
    assert becomes(owner, "db.get('own/a')", "forbidden")
    house.db.set("own/a", b"9")
    assert owner.does("assert near.get('a') == b'1'") == "ok"
    assert owner.does("near.set('w/a', b'2'); assert near.get('w/a') == b'2'") == "ok"
    assert owner.does("near.get('own/a')") == "forbidden"
    assert owner.does("assert near.get('a') == b'1'") == "ok"
