"""The stage without an export: it writes the reason, which all readers of serving bundles give."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.bundle_layout import version_of
from common.files import DataError
from common.layout import SERVING
from flows.nightly.bundles import find_serving_damage
from serving.served_model import ModelSource
from serving.serving_bundle import NOT_EXPORTED, find_serving_bundle, load_serving_bundle
from tests.factories.serving_bundles import ServedProject, copy_of, served_project
from tests.factories.support import ROOT, make_params
from training.export.stage import export_stage
from training.inference.predict import predict
from training.served.known_models import KnownModels

NO_EXPORT = make_params(export__runtime=None).export


@pytest.fixture
def project(tmp_path: Path) -> ServedProject:
    return copy_of(served_project(), tmp_path / "project")


def test_no_runtime_means_a_reason_in_place_of_a_serving_bundle(
    project: ServedProject, capsys: pytest.CaptureFixture[str]
) -> None:
    version = version_of(project.model)
    export_stage(NO_EXPORT, project.root)
    assert "export.runtime is null in params.yaml; no serving bundle is" in capsys.readouterr().out
    assert [path.name for path in project.serving.iterdir()] == [NOT_EXPORTED]
    written = (project.serving / NOT_EXPORTED).read_bytes()
    export_stage(NO_EXPORT, project.root)
    assert (project.serving / NOT_EXPORTED).read_bytes() == written
    assert find_serving_damage(project.serving, version) is None
    assert "of another model" in str(find_serving_damage(project.serving, "0123456789ab"))

    export_stage(project.params.export, project.root)
    assert load_serving_bundle(project.serving).manifest.model_version == version
    assert not (project.serving / NOT_EXPORTED).exists()


def test_every_reader_of_serving_bundles_gives_the_reason(
    project: ServedProject, tmp_path: Path
) -> None:
    source = ModelSource(project.serving)
    assert source.refresh()
    export_stage(NO_EXPORT, project.root)
    reason = (
        rf"{SERVING}: no serving bundle here: model {version_of(project.model)}: it was not"
        r" exported, because export\.runtime is null in params\.yaml; export it \(clickmill export"
    )
    with pytest.raises(DataError, match=reason):
        find_serving_bundle(project.serving)
    with pytest.raises(DataError, match=reason):
        predict(project.serving, project.root / "log.tsv", tmp_path / "scores.csv")
    assert source.refresh() is False
    assert "export.runtime is null in params.yaml" in str(source.fault)
    assert source.model  # the one before goes on
    with pytest.raises(DataError, match="its bundle is not at hand"):
        KnownModels([project.serving]).state_of(version_of(project.model))


def test_the_stage_without_an_export_imports_no_torch(project: ServedProject) -> None:
    code = (
        "import sys; from pathlib import Path; from common.config.params import load_params;"
        " from training.export.stage import export_stage;"
        " params = load_params().export.model_copy(update={'runtime': None});"
        " export_stage(params, Path(sys.argv[1])); print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(project.root)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "False"
    assert (project.serving / NOT_EXPORTED).is_file()
