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
