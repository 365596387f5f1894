"""kv metrics, with the real daemon: names, zero, and counts that are exact."""

import json
import pathlib
import random
import subprocess

from tests.harness.kv_command import Kv
from tests.harness.processes import ROOT
from tests.harness.waiting import eventually

NAMES = ["Keys Stored", "Bytes Stored (Values)", "Set Operations", "Get Operations", "Delete Operations"]


def counts(kv: Kv) -> list[int]:
    """The five numbers, in order."""
    return [int(line.rpartition(": ")[2]) for line in kv.ok("metrics").splitlines()]


def test_metrics_names_and_zero(kv: Kv) -> None:
    assert kv.ok("metrics") == "".join(f"{name}: 0\n" for name in NAMES)


def test_the_transcript_of_the_original(kv: Kv) -> None:
    assert kv.ok("set", "cake=🎂", "horns=😈", "smiley=😁") == "Keys set\n"
    assert kv.ok("get", "cake", "horns", "smiley") == "cake: 🎂\nhorns: 😈\nsmiley: 😁\n"
    assert kv.ok("metrics") == (
        "Keys Stored: 3\nBytes Stored (Values): 12\nSet Operations: 3\nGet Operations: 3\nDelete Operations: 0\n"
    )
    assert kv.ok("del", "horns") == "Keys deleted\n"
    assert counts(kv) == [2, 8, 3, 3, 1]


def test_metrics_after_a_random_mix(kv: Kv) -> None:
    """The number of keys is that of ``kv ls``, and the bytes are those of their values."""
    chance = random.Random(2)  # noqa: S311 - a repeatable mix, no secret
    model: dict[str, str] = {}
    for _ in range(30):
        keys = [f"k{chance.randrange(6)}" for _ in range(chance.randrange(1, 4))]
        if chance.random() < 0.6:
            pairs = {key: "v" * chance.randrange(9) for key in keys}
            kv.ok("set", *(f"{key}={value}" for key, value in pairs.items()))
            model |= pairs
        elif kv("del", *keys).returncode == 0:
            model = {key: value for key, value in model.items() if key not in keys}
    assert kv.ok("ls").split() == sorted(model)
    assert counts(kv)[:2] == [len(model), sum(map(len, model.values()))]


def test_a_failed_del_is_not_counted(kv: Kv) -> None:
    kv.ok("set", "a=1")
    kv.fails(1, "del", "a", "nothing")
    assert counts(kv) == [1, 1, 1, 0, 0]


def test_metrics_json(kv: Kv) -> None:
    kv.ok("set", "a=123")
    metrics = json.loads(kv.ok("m", "--json"))
    assert [metrics[name] for name in ("keys_stored", "value_bytes_stored", "set_operations")] == [1, 3, 1]
    assert {"get_operations", "delete_operations"} <= metrics.keys()


def test_metrics_for_prometheus(kv: Kv) -> None:
    kv.ok("set", "a=123")
    text = kv.ok("metrics", "--prometheus")
    assert text.startswith("# HELP kvd_info ")
    assert "\nkvd_keys 1.0\n" in text
    assert "\nkvd_set_operations_total 1.0\n" in text
    assert text.endswith("\n")
    assert not text.endswith("\n\n")


def test_metrics_into_a_text_file(kv: Kv, tmp_path: pathlib.Path) -> None:
    """Any user can read the file, it is replaced as a whole, and no other file is left."""
    file = tmp_path / "kvd.prom"

    def shows(keys: int) -> bool:
        """The daemon makes this text at most once a second."""
        assert kv.ok("metrics", "--textfile", str(file)) == ""
        return f"\nkvd_keys {keys}.0\n" in file.read_text()

    eventually(lambda: shows(0))
    file.chmod(0o600)
    with file.open() as before:
        kv.ok("set", "a=1")
        eventually(lambda: shows(1))
        assert "\nkvd_keys 0.0\n" in before.read()
    assert file.stat().st_mode & 0o7777 == 0o644
    assert list(tmp_path.iterdir()) == [file]


def test_metrics_that_cannot_be_written_leave_what_was_there(kv: Kv, alone: Kv, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "kvd.prom"
    file.write_text("before")
    alone.fails(69, "metrics", "--textfile", str(file))
    assert file.read_text() == "before"
    kv.fails(74, "metrics", "--textfile", str(tmp_path / "nowhere/kvd.prom"))
    assert "end in .prom" in kv.fails(2, "metrics", "--textfile", str(tmp_path / "kvd.txt"))
    assert "one of" in kv.fails(2, "metrics", "--json", "--prometheus")
    assert list(tmp_path.iterdir()) == [file]


def test_without_prometheus_client_the_daemon_says_what_to_install(tmp_path: pathlib.Path) -> None:
    """It serves all other requests."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'prometheus_client':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
    )
    one = Kv(str(tmp_path / "s"))
    daemon = subprocess.Popen(  # noqa: S603 - the daemon under test
        [*one.command, "serve"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env=one.environment() | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
    )  # fmt: skip
    try:
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == b"Kvd started. Press ctrl-c to stop.\n"
        assert "install kvd[prometheus]" in one.fails(5, "metrics", "--prometheus")
        assert one.ok("metrics").startswith("Keys Stored: 0\n")
    finally:
        daemon.terminate()
        assert daemon.wait(30) == 0
        daemon.communicate()
