"""prefect.yaml, as a Prefect worker uses it."""

import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest
import yaml

from tests.factories.support import ROOT


def entrypoints() -> list[str]:
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    return [deployment["entrypoint"] for deployment in deployments]


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
