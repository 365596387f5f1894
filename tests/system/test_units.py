"""The units pass systemd's own checks."""

import pathlib
from typing import TYPE_CHECKING

import pytest

from tests.harness.processes import ROOT
from tests.harness.programs import require
from tests.system.conftest import run

if TYPE_CHECKING:
    from tests.system.conftest import Box


def test_the_exposure_is_at_most_0_5() -> None:
    require("systemd-analyze")
    run("systemd-analyze", "security", "--offline=true", "--threshold=5", "systemd/kvd.service")


def test_the_exposure_of_the_user_unit_is_at_most_6() -> None:
    """It makes no namespace, which most of the other points would need."""
    require("systemd-analyze")
    run("systemd-analyze", "security", "--offline=true", "--threshold=60", "systemd/user/kvd.service")


@pytest.mark.parametrize("unit", ["systemd/kvd.service", "systemd/user/kvd.service"])
def test_the_units_limit_memory_and_tasks_and_have_no_io_uring(unit: str) -> None:
    lines = (ROOT / unit).read_text().splitlines()
    assert "MemoryMax=80%" in lines
    assert "TasksMax=64" in lines
    assert "SystemCallFilter=~io_uring_setup io_uring_enter io_uring_register" in lines


def test_the_exposure_limit_can_fail(tmp_path: pathlib.Path) -> None:
    require("systemd-analyze")
    unit = tmp_path / "kvd.service"
    unit.write_text((ROOT / "systemd/kvd.service").read_text().replace("NoNewPrivileges=yes", ""))
    with pytest.raises(AssertionError, match="Overall exposure level"):
        run("systemd-analyze", "security", "--offline=true", "--threshold=5", str(unit))


@pytest.mark.parametrize("manager", ["system", "user"])
def test_verify_reports_nothing_about_the_installed_units(box: "Box", manager: str) -> None:
    result = box(
        "export XDG_RUNTIME_DIR=/run;"
        f"cd /usr/local/lib/systemd/{manager}; systemd-analyze --{manager} verify ./*.service ./*.socket 2>&1"
    )
    assert result.stdout == ""
