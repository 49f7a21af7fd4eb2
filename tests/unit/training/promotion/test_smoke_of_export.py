"""The smoke test also scores with artifacts/serving, if it was exported from the same model."""

import shutil
from pathlib import Path

import pytest

from tests.factories.serving_bundles import change_weights, copy_of, served_project, sign
from tests.factories.support import make_params
from training.export.stage import export_stage
from training.inference.bundle import load_bundle
from training.promotion.smoke_test import smoke_test


@pytest.mark.slow
def test_an_export_with_other_scores_is_refused(tmp_path: Path) -> None:
    project = copy_of(served_project(), tmp_path / "project")
    bundle = load_bundle(project.model)
    assert smoke_test(bundle, project.model, project.root) is None

    change_weights(project.serving, 1e-3)
    problem = smoke_test(bundle, project.model, project.root)
    assert problem is not None
    assert "rows have another score in a fresh process with artifacts/serving; row 0 has" in problem

    (project.serving / "model.onnx").write_bytes(b"no model")
    problem = smoke_test(bundle, project.model, project.root)
    assert problem is not None
    assert "a fresh process could not score log.tsv:" in problem
    assert "model.onnx: SHA-256" in problem


@pytest.mark.slow
def test_an_export_of_another_model_is_not_looked_at(tmp_path: Path) -> None:
    project = copy_of(served_project(), tmp_path / "project")
    change_weights(project.serving, 1e-3)
    sign(project.serving, model_version="0123456789ab")
    assert smoke_test(load_bundle(project.model), project.model, project.root) is None
    export_stage(make_params(export__runtime=None).export, project.root)
    assert smoke_test(load_bundle(project.model), project.model, project.root) is None
    shutil.rmtree(project.serving)
    assert smoke_test(load_bundle(project.model), project.model, project.root) is None
