"""`make install` and `make uninstall`, into a DESTDIR and for real, and the contents of the wheel."""

import os
import pathlib
import zipfile
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from kvd import __version__
from tests.harness.processes import ROOT
from tests.harness.programs import require
from tests.system.conftest import Completed, run

if TYPE_CHECKING:
    from tests.system.conftest import Box

EXPECTED = {
    "bin/kv",
    "lib/systemd/system/kvd-http.socket",
    "lib/systemd/system/kvd.service",
    "lib/systemd/system/kvd.socket",
    "lib/systemd/user/kvd.service",
    "lib/systemd/user/kvd.socket",
    "lib/sysusers.d/kvd.conf",
    "share/bash-completion/completions/kv",
    "share/doc/kvd/kvd.toml",
    "share/fish/vendor_completions.d/kv.fish",
    "share/man/man1/kv.1",
    "share/zsh/site-functions/_kv",
}
FISH_LINK = "etc/fish/completions/kv.fish"
Install = Callable[..., Completed]


def files(folder: pathlib.Path) -> Iterator[str]:
    """Yield each file that is not a directory, relative to ``folder``."""
    for parent, folders, names in os.walk(folder):
        linked = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        yield from (os.path.relpath(os.path.join(parent, name), folder) for name in names + linked)


def test_install_puts_each_file_in_its_standard_place(install: Install, tmp_path: pathlib.Path) -> None:
    install("install", f"DESTDIR={tmp_path}")
    found = set(files(tmp_path / "usr/local"))
    assert {name for name in found if not name.startswith("lib/kvd/")} == EXPECTED
    assert set(files(tmp_path)) == {f"usr/local/{name}" for name in found} | {FISH_LINK}


def test_install_with_another_prefix_puts_nothing_outside_it(install: Install, tmp_path: pathlib.Path) -> None:
    install("install", f"DESTDIR={tmp_path}", "PREFIX=/opt/kvd")
    assert {path.name for path in tmp_path.iterdir()} == {"opt"}
    assert {path.name for path in (tmp_path / "opt").iterdir()} == {"kvd"}


def test_uninstall_removes_the_installed_files_and_nothing_else(install: Install, tmp_path: pathlib.Path) -> None:
    others = {"bin/kvetch", "lib/kvd2/x", "lib/systemd/system/other.service", "share/man/man1/kva.1", "lib/kvd.toml"}
    for name in others:
        (tmp_path / "usr/local" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "usr/local" / name).write_text("another program's")
    install("install", f"DESTDIR={tmp_path}")
    install("uninstall", f"DESTDIR={tmp_path}")
    assert set(files(tmp_path)) == {f"usr/local/{name}" for name in others}
    assert not (tmp_path / "usr/local/lib/kvd").exists()
    assert not (tmp_path / "usr/local/share/doc/kvd").exists()


def test_uninstall_leaves_a_kv_of_another_origin(install: Install, tmp_path: pathlib.Path) -> None:
    install("install", f"DESTDIR={tmp_path}")
    command = tmp_path / "usr/local/bin/kv"
    command.unlink()
    command.write_text("another kv")
    install("uninstall", f"DESTDIR={tmp_path}")
    assert list(files(tmp_path / "usr/local")) == ["bin/kv"]


def test_uninstall_without_an_installation_is_not_an_error(install: Install, tmp_path: pathlib.Path) -> None:
    (tmp_path / "usr/local/lib").mkdir(parents=True)
    install("uninstall", f"DESTDIR={tmp_path}")
    install("uninstall", f"DESTDIR={tmp_path / 'nowhere'}")


def test_installing_again_replaces_the_old_installation(install: Install, tmp_path: pathlib.Path) -> None:
    install("install", f"DESTDIR={tmp_path}")
    first = set(files(tmp_path))
    (tmp_path / "usr/local/lib/kvd/lib/left-over").write_text("of an older version")
    install("install", f"DESTDIR={tmp_path}")
    assert set(files(tmp_path)) == first


def test_no_installed_file_contains_destdir_or_the_build_directory(
    install: Install, stage: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    install("install", f"DESTDIR={tmp_path}", "PREFIX=/opt/kvd")
    prefix = tmp_path / "opt/kvd"
    for name in files(prefix):
        # The interpreter and its shared objects are not ours; RECORD and the like name the place of the wheel.
        if not (prefix / name).is_symlink() and ".dist-info/" not in name:
            content = (prefix / name).read_bytes()
            assert os.fsencode(tmp_path) not in content, name
            assert os.fsencode(stage) not in content, name
    assert (prefix / "lib/kvd/bin/kv").read_text().startswith("#!/opt/kvd/lib/kvd/bin/python\n")
    for unit in ("system", "user"):
        assert "\nExecStart=/opt/kvd/bin/kv serve\n" in (prefix / f"lib/systemd/{unit}/kvd.service").read_text()


def test_every_file_is_compiled_and_readable_for_every_user(stage: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Root's umask may be 077, and only root can write the .pyc files later."""
    private = tmp_path / "stage"
    run("cp", "-a", stage, private)
    run("chmod", "-R", "go=", private)
    make = f"make STAGE={private} --assume-old={private}/.made install DESTDIR={tmp_path}/dest"
    run("sh", "-c", f"umask 077; {make}")
    sources = [name for name in files(tmp_path / "dest") if name.endswith(".py")]
    compiled = [name for name in files(tmp_path / "dest") if name.endswith(".pyc")]
    assert len(sources) == len(compiled) > 50
    for path in (tmp_path / "dest/usr").rglob("*"):
        expected = 0o005 if path.is_dir() else 0o004
        assert path.is_symlink() or path.stat().st_mode & expected == expected, path


def test_kv_runs_from_a_users_own_prefix(install: Install, tmp_path: pathlib.Path) -> None:
    install("install", f"PREFIX={tmp_path}/own")
    assert run(f"{tmp_path}/own/bin/kv", "version").stdout.startswith(f"kv {__version__}")


def test_a_relative_prefix_is_refused(stage: pathlib.Path) -> None:
    with pytest.raises(AssertionError, match="PREFIX has to be an absolute path"):
        run("make", f"STAGE={stage}", f"--assume-old={stage}/.made", "install", "PREFIX=here")


def test_the_wheel_contains_the_same_files(tmp_path: pathlib.Path) -> None:
    run(f"{ROOT}/.venv/bin/python", "-m", "pip", "wheel", "--quiet", "--no-deps", f"--wheel-dir={tmp_path}", ".")
    [wheel] = tmp_path.glob("kvd-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    data = {name.split(".data/data/")[1] for name in names if ".data/data/" in name}
    assert data == EXPECTED - {"bin/kv"}
    assert [name.split(".data/")[1] for name in names if ".data/scripts/" in name] == ["scripts/kv"]
    assert {"kv/py.typed", "kvd/py.typed"} <= set(names)


# ---------------------------------------------------------------------- installed for real


def test_every_shell_finds_the_completion(box: "Box") -> None:
    require("bash", "zsh", "fish")
    result = box(
        "kv set cake=1;"
        "bash -c '. /usr/share/bash-completion/bash_completion; _completion_loader kv; complete -p kv';"
        "zsh -fc 'autoload -U compinit; compinit -u -D; print ${_comps[kv]}';"
        "fish -c 'complete --do-complete \"kv get ca\"'"
    )
    assert result.stdout.splitlines() == [
        "Keys set", "complete -o nospace -F _kv kv", "_kv", "cake",
    ]  # fmt: skip


def test_man_finds_the_page(box: "Box") -> None:
    require("man")
    assert box("unset MANPATH; realpath $(man --where kv)").stdout == "/usr/local/share/man/man1/kv.1\n"


def test_uninstall_is_refused_while_the_service_runs_and_then_leaves_no_files(box: "Box") -> None:
    result = box(
        f"list() {{ find /usr/local /etc/fish ! -type d ! -path '*/__pycache__/*' | sort; }}; list >/tmp/with;"
        f"kv ping; make --silent --directory={ROOT} uninstall 2>&1 || true; kv ping;"
        "systemctl disable --now kvd.socket kvd-http.socket kvd.service 2>/dev/null;"
        f"make --silent --directory={ROOT} uninstall;"
        "list | comm -23 - /tmp/with; list | comm -13 - /tmp/with | grep --invert-match ^/usr/local/lib/kvd/"
    )
    lines = result.stdout.splitlines()
    assert lines[0] == lines[3] == "ok"
    assert lines[1] == "kvd is running. First: systemctl disable --now kvd.socket kvd-http.socket kvd.service"
    assert lines[4].startswith("Removed.")
    assert lines[5:] == sorted([f"/{FISH_LINK}", *(f"/usr/local/{name}" for name in EXPECTED)])
