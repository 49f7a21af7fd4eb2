"""An export has reproducible bytes, is checked, and is refused where it is not good enough."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from common.artifact import Artifact
from common.bundle_layout import MODEL
from common.config.loading import ConfigError
from common.config.params import Export
from common.files import DataError
from common.layout import FEATURES, SERVING
from serving.runtime import Runtime
from serving.serving_bundle import (
    NOT_EXPORTED,
    Logloss,
    find_serving_bundle,
    load_serving_bundle,
)
from tests.factories.html_pages import parsed_html
from tests.factories.models import read_split
from tests.factories.serving_bundles import ServedProject, change_weights, copy_of, served_project
from tests.factories.support import ROOT
from training.compression.compress_model import Steps
from training.compression.stage import compress
from training.export.export_model import export
from training.export.parity import (
    ExportError,
    check_batches,
    check_logloss,
    check_parity,
    runtime_scores,
)
from training.export.stage import export_stage
from training.export.test_rows import TestRows
from training.inference.bundle import load_bundle
from training.inference.predict import predict
from training.inference.score import score
from training.kernels import compiler


@pytest.fixture(scope="module")
def project() -> ServedProject:
    return served_project()


def rows_of(project: ServedProject, max_rows: int = 1000) -> TestRows:
    bundle = load_bundle(project.model)
    return TestRows.read(Artifact.open(project.root / FEATURES), bundle.state.schema, max_rows)


def test_a_serving_bundle_says_what_it_is(project: ServedProject) -> None:
    found = load_serving_bundle(find_serving_bundle(project.serving))
    bundle = load_bundle(project.model)
    manifest = found.manifest
    assert manifest.version == manifest.model_version == bundle.version
    assert (manifest.runtime, manifest.tables, manifest.mlps) == ("onnx", "fp32", "fp32")
    assert manifest.short_rows == project.params.ingest.short_rows
    test = read_split(project.root, "test")
    assert manifest.parity.rows == test.height
    assert 0 < manifest.parity.max_difference <= 1e-6
    labels, scores = test[found.state.schema.label].to_numpy(), score(bundle, test).astype(float)
    loss = -np.mean(np.log(np.where(labels == 1, scores, 1 - scores)))
    assert manifest.logloss.trained == pytest.approx(loss, rel=1e-6)
    assert manifest.logloss.exported == pytest.approx(loss, rel=1e-5)
    assert found.state.cardinalities == bundle.state.cardinalities


def test_predict_scores_with_a_serving_bundle(project: ServedProject, tmp_path: Path) -> None:
    lines = (project.root / "log.tsv").read_text().splitlines()[:200]
    (tmp_path / "log.tsv").write_text("\n".join([*lines, "too\tshort"]) + "\n")
    scores = {}
    for name, model in (("bundle", project.model), ("serving", project.serving)):
        output = tmp_path / f"{name}.parquet"
        predict(model, tmp_path / "log.tsv", output)
        scores[name] = pl.read_parquet(output)
        assert pl.read_parquet(tmp_path / f"{name}.bad_rows.parquet")["line"].to_list() == [201]
    assert scores["bundle"]["line"].equals(scores["serving"]["line"])
    difference = (scores["bundle"]["score"] - scores["serving"]["score"]).abs()
    assert 0 < difference.max() <= 1e-6  # type: ignore[operator]


def test_predict_with_a_serving_bundle_imports_no_torch(
    project: ServedProject, tmp_path: Path
) -> None:
    code = (
        "import sys; from pathlib import Path; from training.inference.predict import predict;"
        " predict(*map(Path, sys.argv[1:])); print('torch' in sys.modules)"
    )
    paths = [project.serving, project.root / "log.tsv", tmp_path / "scores.csv"]
    command = [sys.executable, "-c", code, *map(str, paths)]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "False"


EXPORT = """
import sys
from pathlib import Path
from common.config.loading import ConfigError
from common.config.params import load_params
from training.export.stage import export_stage
export_stage(load_params().export, Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_two_folders_and_hash_seeds_give_the_same_bytes(
    project: ServedProject, tmp_path: Path
) -> None:
    """The code is copied too, so a path of the code would be found as well."""
    contents = []
    for seed in ("1", "2"):
        root = copy_of(project, tmp_path / f"project {seed}").root
        shutil.rmtree(root / SERVING)
        for room in ("common", "features", "serving", "training"):
            shutil.copytree(ROOT / room, tmp_path / f"code{seed}" / room)
        shutil.copy(ROOT / "params.yaml", tmp_path / f"code{seed}")
        environment = os.environ | {
            "PYTHONHASHSEED": seed,
            "PYTHONPATH": str(tmp_path / f"code{seed}"),
        }
        command = [sys.executable, "-c", EXPORT, str(root)]
        subprocess.run(command, cwd=tmp_path / f"code{seed}", env=environment, check=True)
        found = {
            path.relative_to(root): path.read_bytes()
            for path in (root / SERVING).rglob("*")
            if path.is_file()
        }
        for data in found.values():
            for text in (str(tmp_path), str(ROOT), sys.prefix, "stack_trace"):
                assert text.encode() not in data
        contents.append(found)
    assert contents[0] == contents[1]
    served = {path: (project.root / path).read_bytes() for path in contents[0]}
    assert contents[0] == served


def test_scores_that_differ_are_refused(project: ServedProject) -> None:
    expected = score(load_bundle(project.model), rows_of(project).frame)
    other = expected.copy()
    other[7] += np.float32(2e-6)
    with pytest.raises(ExportError, match=r"model x: test row 7 has the score 0\.\d+ in the exp"):
        check_parity(expected, other, "model x")
    other[7] = np.nan
    with pytest.raises(ExportError, match="test row 7 has the score nan"):
        check_parity(expected, other, "model x")
    parity = check_parity(expected, expected, "model x")
    assert (parity.rows, parity.max_difference) == (len(expected), 0)


def test_a_model_whose_scores_depend_on_the_batch_is_refused(project: ServedProject) -> None:
    """A runtime of which every row depends on the number of rows of its batch."""
    rows = rows_of(project, 100)
    scores = np.full(100, 0.5, np.float32)
    check_batches(lambda dense, ids: np.full(len(ids), 0.5, np.float32), rows, scores, "model x")
    for size in (1, 3, 17):

        def other(dense: np.ndarray, ids: np.ndarray, size: int = size) -> np.ndarray:
            return np.full(len(ids), 0.5 + 1e-7 * (len(ids) == size), np.float32)

        with pytest.raises(ExportError, match=f"test row 0 has .* in a batch of {size} and 0.5 in"):
            check_batches(other, rows, scores, "model x")


def test_rows_are_scored_in_batches_in_their_order(project: ServedProject) -> None:
    rows = rows_of(project, 50)
    assert rows.frame.height == len(rows.ids) == 50
    assert rows.frame.equals(read_split(project.root, "test").head(50))
    sizes = []

    def first_dense(dense: np.ndarray, ids: np.ndarray) -> np.ndarray:
        sizes.append(len(ids))
        return dense[:, 0]

    assert runtime_scores(first_dense, rows, 17).tolist() == rows.dense[:, 0].tolist()
    assert sizes == [17, 17, 16]


def params_of(project: ServedProject, **changes: object) -> Export:
    return Export.model_validate(project.params.export.model_dump() | changes)


def test_formats_that_cost_too_much_are_refused(project: ServedProject) -> None:
    logloss = Logloss(trained=0.45, exported=0.4503)
    check_logloss(logloss, params_of(project, max_logloss_loss=0.00031), "model x")
    message = (
        r"model x: with tables in int4 and linear layers in fp32 the logloss of the test rows is"
        r" 0\.450300 instead of 0\.450000, 0\.000300 more, and export\.max_logloss_loss accepts"
        r" 0\.0002"
    )
    with pytest.raises(ExportError, match=message):
        check_logloss(logloss, params_of(project, tables="int4"), "model x")


def test_an_export_of_fewer_bits_has_them_in_its_version(
    project: ServedProject, tmp_path: Path
) -> None:
    params = params_of(project, tables="int4", mlps="bf16", max_logloss_loss=1)
    export(project.model, tmp_path / "small", params, project.root)
    manifest = load_serving_bundle(tmp_path / "small").manifest
    assert manifest.version == f"{manifest.model_version}-int4-bf16"
    assert manifest.logloss.exported != pytest.approx(manifest.logloss.trained, abs=1e-6)
    before = (project.serving / "model.onnx").stat().st_size
    assert (tmp_path / "small/model.onnx").stat().st_size < 0.6 * before


@pytest.mark.parametrize("kind", ["other folder", "file", "in a bundle", "in artifacts", "link"])
def test_an_output_that_is_something_else_is_kept(
    project: ServedProject, tmp_path: Path, kind: str
) -> None:
    root = copy_of(project, tmp_path / "project").root
    shutil.copy(ROOT / "params.yaml", root)
    output = {
        "other folder": tmp_path / "folder",
        "file": tmp_path / "file",
        "in a bundle": root / MODEL / "serving",
        "in artifacts": root / "artifacts/parquet",
        "link": tmp_path / "link",
    }[kind]
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/kept").write_text("kept")
    (tmp_path / "file").write_text("kept")
    (tmp_path / "link").symlink_to(root / SERVING)
    with pytest.raises(DataError, match="--output"):
        export(root / MODEL, output, project.params.export, root)
    assert (tmp_path / "folder/kept").read_text() == (tmp_path / "file").read_text() == "kept"
    load_bundle(root / MODEL)


def test_a_serving_bundle_may_be_put_beside_its_bundle_among_the_artifacts(
    project: ServedProject, tmp_path: Path
) -> None:
    """The remedy where a bundle has no serving bundle; a reason in its place is replaced."""
    root = copy_of(project, tmp_path / "project").root
    shutil.copy(ROOT / "params.yaml", root)
    bundle = root / "artifacts/models/1f2e3d4c5b6a"
    bundle.parent.mkdir()
    (root / MODEL).rename(bundle)
    production = root / "artifacts/production"
    production.symlink_to("models/1f2e3d4c5b6a")
    beside = bundle.with_name(f"{bundle.name}.serving")
    beside.mkdir()
    (beside / NOT_EXPORTED).write_text("model x: it was not exported\n")
    with pytest.raises(DataError, match=r"production: no serving bundle here: model x: it was not"):
        find_serving_bundle(production)
    export(production, beside, project.params.export, root)
    assert find_serving_bundle(production) == beside
    assert not (beside / NOT_EXPORTED).exists()
    with pytest.raises(DataError, match=r"--output .*other\.serving: this is inside .*artifacts"):
        export(production, beside.with_name("other.serving"), project.params.export, root)


def test_an_export_without_a_runtime_is_refused(project: ServedProject, tmp_path: Path) -> None:
    params = params_of(project, runtime=None)
    with pytest.raises(
        ConfigError, match=r"export\.runtime is null in params\.yaml.*--runtime onnx"
    ):
        export(project.model, tmp_path / "out", params, project.root)
    assert not (tmp_path / "out").exists()


def test_a_failed_export_leaves_the_one_before(project: ServedProject, tmp_path: Path) -> None:
    root = copy_of(project, tmp_path / "project").root
    before = (root / SERVING / "serving.json").read_bytes()
    with (root / MODEL / "weights.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match=r"weights\.safetensors: SHA-256"):
        export_stage(project.params.export, root)
    assert (root / SERVING / "serving.json").read_bytes() == before
    assert [path.name for path in (root / SERVING).parent.glob(".*")] == []


def test_a_changed_model_file_is_noticed(project: ServedProject, tmp_path: Path) -> None:
    copy = copy_of(project, tmp_path / "project")
    rows = rows_of(copy)
    change_weights(copy.serving, 1e-4)
    expected = score(load_bundle(copy.model), rows.frame)
    scores = runtime_scores(Runtime(copy.serving / "model.onnx").scores, rows)
    with pytest.raises(ExportError, match="at most 1e-06 of difference"):
        check_parity(expected, scores, "model x")


@pytest.mark.slow
def test_a_compressed_bundle_keeps_its_formats(project: ServedProject, tmp_path: Path) -> None:
    root = copy_of(project, tmp_path / "project").root
    compress(root / MODEL, tmp_path / "small", Steps(8, rows=0.5, units=0.2), root)
    export(tmp_path / "small", tmp_path / "small.serving", project.params.export, root)
    manifest = load_serving_bundle(tmp_path / "small.serving").manifest
    assert manifest.version == load_bundle(tmp_path / "small").version
    before = (project.serving / "model.onnx").stat().st_size
    assert (tmp_path / "small.serving/model.onnx").stat().st_size < 0.7 * before
    with pytest.raises(ConfigError, match=r"is compressed, so its numbers have formats already"):
        export(tmp_path / "small", tmp_path / "x", params_of(project, tables="int8"), root)
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
@pytest.mark.skipif(compiler.library() is None, reason="no C++ compiler")
def test_a_package_of_aotinductor_is_checked_and_scored_by_pytorch_only(
    project: ServedProject, tmp_path: Path
) -> None:
    params = params_of(project, runtime="aoti", tables="int4", max_logloss_loss=1)
    export(project.model, tmp_path / "aoti", params, project.root)
    export(
        project.model,
        tmp_path / "onnx",
        params.model_copy(update={"runtime": "onnx"}),
        project.root,
    )
    found = load_serving_bundle(tmp_path / "aoti")
    assert (found.manifest.runtime, found.manifest.opset) == ("aoti", None)
    assert found.manifest.parity.max_difference <= 1e-6
    with pytest.raises(DataError, match="only PyTorch can run; export the model again with --run"):
        Runtime(found.model_path)
    scores = []
    for name in ("aoti", "onnx"):
        predict(tmp_path / name, project.root / "log.tsv", tmp_path / f"{name}.parquet")
        scores.append(pl.read_parquet(tmp_path / f"{name}.parquet")["score"])
    assert (scores[0] - scores[1]).abs().max() <= 1e-6  # type: ignore[operator]


def test_aotinductor_without_a_compiler_says_so(project: ServedProject, tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from common.config.params import load_params
from training.export.export_model import export
root, output = map(Path, sys.argv[1:])
params = load_params().export.model_copy(update={"runtime": "aoti"})
export(root / "artifacts/model", output, params, root)
"""
    command = [sys.executable, "-c", code, str(project.root), str(tmp_path / "out")]
    environment = os.environ | {"CXX": "/nonexistent"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert "ConfigError: export.runtime aoti needs a C++ compiler" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_report_compares_all_formats(project: ServedProject, tmp_path: Path) -> None:
    params = params_of(project, tables="int8", max_logloss_loss=1)
    output = tmp_path / "small"
    manifest = export(project.model, output, params, project.root, with_report=True)
    text = (tmp_path / "small.html").read_text()
    assert parsed_html(text).loads == []
    rows = re.findall(r"<tr.*?</tr>", text, re.DOTALL)
    lines = [
        [re.sub("<.*?>", "", cell) for cell in re.findall(r"<t[dh]>(.*?)</t[dh]>", row)]
        for row in rows
    ]
    assert [line[0] for line in lines[1:]] == [
        "tables fp32, linear layers fp32",
        "tables fp16, linear layers fp32",
        "tables int8, linear layers fp32 (this serving bundle)",
        "tables int4, linear layers fp32",
        "tables fp32, linear layers bf16",
        "tables int8, linear layers bf16",
    ]
    loglosses = [float(line[3]) for line in lines[1:]]
    assert loglosses[0] == pytest.approx(manifest.logloss.trained, abs=1e-6)
    assert loglosses[2] == pytest.approx(manifest.logloss.exported, abs=1e-6)
    sizes = [float(line[6]) for line in lines[1:]]
    assert sizes[:4] == sorted(sizes[:4], reverse=True)
    assert sizes[0] > sizes[3]
    with pytest.raises(ConfigError, match="is an output of a stage"):
        export(project.model, project.serving, params, project.root, with_report=True)
