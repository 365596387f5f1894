"""A Dockerfile carried out without an engine: each step in a plain Debian root, as an engine would run it.

What is understood is what ours has, in one-line instructions; anything else is an error, so that no step is passed
over. Images of Debian are made by mmdebstrap, from the archive that this machine's apt uses.
"""

import json
import os
import pathlib
import shlex
import shutil
import subprocess
import tomllib
from dataclasses import dataclass, field

from tests.harness.processes import ROOT

DEADLINE_S = 300
# What an engine gives to every process, docker.io/engine/reference/builder/#env.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NOTED = ("STOPSIGNAL",)
# $1: the root, $2: a directory with wheels, $3: who; then the command.
STEP = """
mount -t proc proc "$1/proc"; mount --rbind /dev "$1/dev"
[ -z "$2" ] || { mount --bind "$2" "$1/mnt"; }
root=$1 who=$3; shift 3; exec chroot --userspec="$who" "$root" "$@"
"""


@dataclass
class Image:
    """A root directory, and how a process in it is started."""

    root: pathlib.Path
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": PATH})
    user: str = "0:0"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)
    volumes: list[str] = field(default_factory=list)
    noted: dict[str, str] = field(default_factory=dict)

    def run(self, *command: str, wheels: str = "", **more: str) -> str:
        """Run a command in it with its user and environment; what it printed. Must succeed."""
        return run(
            "unshare", "--mount", "--pid", "--fork", "sh", "-euc", STEP, "sh", str(self.root), wheels,
            self.user, "/usr/bin/env", "-i",
            *(f"{name}={value}" for name, value in (self.environment | more).items()), *command,
        )  # fmt: skip


def run(*command: str) -> str:
    """Run to the end; what it printed. Must succeed."""
    done = subprocess.run(  # noqa: S603 - the test's own commands
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


def instructions(dockerfile: pathlib.Path) -> list[tuple[str, str]]:
    """Its steps in order: the instruction, and what follows it."""
    lines = [line.strip() for line in dockerfile.read_text().splitlines()]
    steps = [line.partition(" ") for line in lines if line and not line.startswith("#")]
    return [(name, rest.strip()) for name, _, rest in steps]


def build(dockerfile: pathlib.Path, folder: pathlib.Path, wheels: pathlib.Path) -> Image:
    """Carry out all of its steps; the image of the last stage. pip finds ``wheels`` and asks nobody else."""
    stages: dict[str, Image] = {}
    image: Image | None = None
    for name, rest in instructions(dockerfile):
        if name == "FROM":
            image = _begin(rest, stages, folder)
            continue
        assert image is not None, "nothing comes before FROM"
        match name:
            case "RUN":
                image.run("/bin/sh", "-c", rest, wheels=str(wheels), PIP_NO_INDEX="1", PIP_FIND_LINKS="/mnt")
            case "COPY":
                _copy(rest, image, stages, dockerfile)
            case "ENV":
                image.environment |= dict(word.split("=", 1) for word in shlex.split(rest))
            case "USER":
                image.user = rest
            case "VOLUME":
                image.volumes = rest.split()
            case "ENTRYPOINT":
                image.entrypoint = json.loads(rest)
            case "CMD":
                image.command = json.loads(rest)
            case "HEALTHCHECK":
                image.healthcheck = json.loads(rest.partition(" CMD ")[2])
            case _:
                assert name in NOTED, f"no step like this is understood: {name} {rest}"
                image.noted[name] = rest
    assert image is not None
    return image


def _begin(source: str, stages: dict[str, Image], folder: pathlib.Path) -> Image:
    base, _, name = source.partition(" AS ")
    root = folder / (name or "last")
    if base in stages:
        of = stages[base]
        run("cp", "--archive", "--reflink=auto", str(of.root), str(root))
        image = Image(root, dict(of.environment), of.user)
    else:
        image = Image(root)
        _debian(base, root)
    stages[name or "last"] = image
    return image


def _debian(image: str, root: pathlib.Path) -> None:
    name, _, tag = image.partition(":")
    suite = tag.removesuffix("-slim")
    assert name == "debian", f"only Debian's images can be made here, not {image}"
    known = run("apt-get", "indextargets", "--format", "$(RELEASE) $(COMPONENT) $(REPO_URI)", "Created-By: Packages")
    mirrors = [line.split(" ")[2] for line in known.splitlines() if line.startswith(f"{suite} main ")]
    run("mmdebstrap", "--quiet", "--variant=apt", "--mode=root", suite, str(root), *mirrors[:1])
    for file in ("/etc/resolv.conf", "/etc/hosts"):  # as an engine does
        shutil.copyfile(file, f"{root}{file}")


def _copy(what: str, image: Image, stages: dict[str, Image], dockerfile: pathlib.Path) -> None:
    *sources, target = what.split()
    place = pathlib.Path(f"{image.root}{target}")
    if sources[0].startswith("--from="):
        stage = stages[sources[0].removeprefix("--from=")]
        run("cp", "--archive", f"{stage.root}{sources[1]}", str(place))
        return
    assert sources == ["."], "the whole context, of which .dockerignore leaves what is needed"
    for name in context(dockerfile):
        copy = place / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(ROOT / name, copy)


def context(dockerfile: pathlib.Path) -> list[str]:
    """What the build may see: its ignore file leaves out all, and lets in what it names behind ``!``."""
    lines = pathlib.Path(f"{dockerfile}.dockerignore").read_text().splitlines()
    assert "*" in lines
    return [line[1:] for line in lines if line.startswith("!")]


def download(folder: pathlib.Path, python: str) -> None:
    """Fetch the wheels that installing needs, for Debian 12's Python, with this machine's pip."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["prometheus"],
    ]
    run(
        python, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--python-version=3.11",
        "--dest", str(folder), *wanted,
    )  # fmt: skip


def processes(image: Image) -> list[str]:
    """The command that starts a container of it: its first process, all read-only but its volumes."""
    mounts = " ".join(f'mount -t tmpfs -o mode=1777 none "$1{volume}";' for volume in image.volumes)
    script = (
        f'mount --bind "$1" "$1"; mount -t proc proc "$1/proc"; mount --bind /dev "$1/dev"; {mounts} '
        'mount -o remount,ro,bind "$1"; root=$1 who=$2; shift 2; exec chroot --userspec="$who" "$root" "$@"'
    )
    return [
        "unshare", "--mount", "--pid", "--fork", "sh", "-euc", script, "sh", str(image.root), image.user,
        "/usr/bin/env", "-i", *(f"{name}={value}" for name, value in image.environment.items()),
        *image.entrypoint, *image.command,
    ]  # fmt: skip


def inside(image: Image, pid: int, *command: str) -> "subprocess.CompletedProcess[str]":
    """Run a command beside the process ``pid``, as `docker exec` does."""
    uid, _, gid = image.user.partition(":")
    return subprocess.run(  # noqa: S603 - what the image names
        ["nsenter", f"--target={pid}", "--mount", "--pid", "--root", f"--setuid={uid}", f"--setgid={gid}", *command],  # noqa: S607
        env=image.environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False, cwd=os.sep,
    )  # fmt: skip
