"""The programs of the serving image import only the packages of requirements/serve.txt."""

import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from common.layout import RAW
from tests.factories.serving_bundles import served_project
from tests.factories.support import ROOT

pytestmark = pytest.mark.slow

# It finds no absent module, as if it were not installed.
SCRIPT = """
import importlib, pkgutil, sys
from importlib.machinery import PathFinder
from pathlib import Path

class Installed(PathFinder):
    absent = {*sys.argv[1].split()}

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name in cls.absent else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Installed
assert importlib.util.find_spec("torch") is None
import common, features.online, serving, flows.cli.main
for package in (features.online, serving):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
from serving.served_model import load_model
model = load_model(Path(sys.argv[2]))
for line in Path(sys.argv[3]).read_bytes().splitlines(keepends=True):
    rows = model.encoder.encode_lines(line)
    print(*model.runtime.scores(rows.dense_GN, rows.ids_GF))
sys.argv = ["clickmill", "serve", "--help"]
flows.cli.main.app()
"""


def absent_modules() -> set[str]:
    """Return the modules that are installed here and are not in the serving image."""
    text = (ROOT / "requirements" / "serve.txt").read_text(encoding="utf-8")
    locked = {normalised(name) for name in re.findall(r"^([\w.-]+)==", text, re.MULTILINE)}
    return {
        module
        for module, distributions in packages_distributions().items()
        if not {normalised(name) for name in distributions} & {*locked, "clickmill"}
    }


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_serving_needs_no_package_that_its_image_does_not_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = absent_modules()
    assert {"torch", "prefect", "dvc", "pandas", "fastapi", "matplotlib", "onnx"} <= absent
    assert not absent & {"numpy", "polars", "onnxruntime", "uvicorn", "clickmill"}
    project = served_project()
    lines = tmp_path / "lines"
    log = project.root / RAW / "log.tsv"
    rows = log.read_bytes().splitlines(keepends=True)[:3]
    odd = rows[0].rstrip(b"\n") + b"z\n"  # a field that only the readers of logs understand
    lines.write_bytes(b"".join(row.partition(b"\t")[2] for row in [*rows, odd]))
    monkeypatch.setenv("CXX", "/nonexistent")  # nor does it have a compiler
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, " ".join(absent), project.serving, lines],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert process.returncode == 0, process.stderr
    scores = re.findall(r"^0\.\d+$", process.stdout, re.MULTILINE)
    assert len(scores) >= 3
    assert "Usage: clickmill serve" in process.stdout
