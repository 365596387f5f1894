"""deploy/Dockerfile: each of its steps runs in a plain Debian root, and the result runs like a container."""

import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import pytest

from tests.containers import images
from tests.containers.conftest import children
from tests.harness.processes import ROOT
from tests.harness.programs import require
from tests.harness.waiting import DEADLINE_S

DOCKERFILE = ROOT / "deploy/Dockerfile"
PROGRAMS = ("mmdebstrap", "unshare", "chroot", "mount", "nsenter", "apt-get")
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def image() -> Iterator[images.Image]:
    """The image that the Dockerfile makes."""
    require(*PROGRAMS, root=True)
    with tempfile.TemporaryDirectory(prefix="kvd-image-") as folder:
        wheels = pathlib.Path(folder, "wheels")
        wheels.mkdir()
        images.download(wheels, sys.executable)
        yield images.build(DOCKERFILE, pathlib.Path(folder), wheels)


@pytest.fixture
def container(image: images.Image) -> Iterator["subprocess.Popen[str]"]:
    """A container that has started."""
    running = subprocess.Popen(  # noqa: S603 - the image's own command
        images.processes(image), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert running.stdout is not None
        output = ""
        while (line := running.stdout.readline()) and "Kvd started" not in line:
            output += line
        assert line, output
        yield running
    finally:
        if running.poll() is None:
            os.kill(first_process(running), signal.SIGKILL)
        running.communicate(timeout=DEADLINE_S)


def first_process(running: "subprocess.Popen[str]") -> int:
    """The pid of the container's first process, as seen from outside."""
    return int(children(running.pid)[0])


def test_the_image_runs_as_an_ordinary_user_and_has_no_build_tools(image: images.Image) -> None:
    assert image.user == "10001:10001"
    assert image.volumes == ["/run/kvd", "/data"]
    assert image.noted == {"STOPSIGNAL": "SIGTERM"}
    assert not (image.root / "src").exists()
    left = image.run("/opt/kvd/bin/python", "-c", "import importlib.util as u; print(u.find_spec('pip'), end='')")
    assert left == "None"
    assert not list(image.root.glob("usr/share/python-wheels/*.whl"))
    assert sum(path.lstat().st_size for path in (image.root / "opt/kvd").rglob("*")) < 40 * MIB


def test_a_container_is_healthy_while_it_serves(image: images.Image, container: "subprocess.Popen[str]") -> None:
    pid = first_process(container)
    assert pathlib.Path(f"/proc/{pid}").stat().st_uid == 10001
    assert images.inside(image, pid, *image.healthcheck).returncode == 0
    assert images.inside(image, pid, "kv", "set", "a=1").stdout == "Keys set\n"
    assert "kvd_keys 1.0\n" in images.inside(image, pid, "kv", "metrics", "--prometheus").stdout
    assert images.inside(image, pid, "touch", "/x").returncode == 1
    os.kill(pid, signal.SIGSTOP)
    try:
        assert images.inside(image, pid, *image.healthcheck, "--timeout", "0.2").returncode == 5
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_container_stops_in_order_at_sigterm(container: "subprocess.Popen[str]") -> None:
    os.kill(first_process(container), signal.SIGTERM)
    output, _ = container.communicate(timeout=DEADLINE_S)
    assert container.returncode == 0
    assert "stopped: pid 1\n" in output


def test_an_unknown_step_is_an_error(tmp_path: pathlib.Path) -> None:
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text("RUN true\n")
    with pytest.raises(AssertionError, match="before FROM"):
        images.build(dockerfile, tmp_path, tmp_path)
    dockerfile.write_text("FROM alpine\n")
    with pytest.raises(AssertionError, match="only Debian"):
        images.build(dockerfile, tmp_path, tmp_path)
