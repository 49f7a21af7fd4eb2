"""prefect.yaml, as a Prefect worker uses it."""

import asyncio
import sys
from datetime import date, datetime, time, timedelta
from importlib.metadata import distributions
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import yaml
from prefect.server.schemas.schedules import CronSchedule

from tests.factories.support import ROOT


def entrypoints() -> list[str]:
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    return [deployment["entrypoint"] for deployment in deployments]


@pytest.mark.parametrize("zone", ["as shipped", "Europe/Berlin", "America/New_York"])
@pytest.mark.parametrize("first", [date(2027, 3, 1), date(2027, 10, 20)])
def test_each_day_has_one_nightly_run_also_when_the_clocks_change(zone: str, first: date) -> None:
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    (schedule,) = next(one["schedules"] for one in deployments if one["name"] == "nightly")
    assert schedule["timezone"] == "UTC"
    if zone != "as shipped":
        schedule = {"cron": "30 2 * * *", "timezone": zone}  # an hour that is missing, or is twice
    start = datetime.combine(first, time(), ZoneInfo(schedule["timezone"]))
    days = [first + timedelta(days=number) for number in range(35)]
    times = asyncio.run(CronSchedule(**schedule).get_dates(len(days), start))
    assert [at.astimezone(start.tzinfo).date() for at in times] == days


def installed_modules() -> set[str]:
    """Return the names of all top-level modules of Python and of the installed packages."""
    files = {Path(str(file)) for one in distributions() for file in one.files or []}
    packages = {file.parts[0] for file in files if len(file.parts) > 1 and file.suffix == ".py"}
    modules = {file.stem for file in files if len(file.parts) == 1 and file.suffix == ".py"}
    return packages | modules | set(sys.stdlib_module_names)


@pytest.mark.parametrize("entrypoint", entrypoints())
def test_a_file_beside_a_flow_has_no_name_of_an_installed_package(entrypoint: str) -> None:
    """Prefect puts the folder of a flow first on sys.path, where its files hide packages.

    flows/nightly/dvc_data.py once hid DVC's dvc_data, and every scheduled run crashed.
    """
    script = ROOT / entrypoint.partition(":")[0]
    assert script.exists()
    names = {path.stem for path in script.parent.iterdir() if path.suffix in ("", ".py")}
    assert not (names - {"__init__", "__pycache__"}) & installed_modules()
