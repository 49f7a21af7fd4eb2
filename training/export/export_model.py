"""From a bundle to a serving bundle, which is scored without PyTorch.

No export is written whose scores differ from those of PyTorch, or whose number formats cost more
logloss than params.yaml allows.
"""

import os
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.artifact import Artifact
from common.checked_json import write_checked_json
from common.config.loading import ConfigError
from common.config.params import Export
from common.files import DataError, replaced, sha256_file
from common.layout import FEATURES, SERVING
from common.logs import get_logger
from common.progress import Progress
from common.threads import usable_cpus
from common.user_files import expand_home, refuse_kept_folders
from serving.runtime import Runtime
from serving.serving_bundle import (
    MODEL_FILE,
    NOT_EXPORTED,
    PACKAGE_FILE,
    SERVING_MANIFEST,
    STATE,
    SUFFIX,
    Logloss,
    Parity,
    ServingManifest,
    files_of,
    read_serving_manifest,
)
from training.export.aoti_package import write_package
from training.export.compare import compare_formats, write_report
from training.export.formats import with_formats
from training.export.onnx_file import OPSET, write_onnx
from training.export.parity import (
    MAX_DIFFERENCE,
    Score,
    check_batches,
    check_logloss,
    check_parity,
    runtime_scores,
)
from training.export.test_rows import TestRows
from training.export.traced_model import trace
from training.inference.aoti_package import load_package
from training.inference.bundle import Bundle, check_same_state, load_bundle
from training.inference.score import score

log = get_logger("export")

PACKAGES = ("clickmill", "torch", "onnx", "onnxscript", "onnxruntime", "numpy")


def export(
    model_dir: Path, output: Path, params: Export, root: Path, *, with_report: bool = False
) -> ServingManifest:
    """Export a bundle.

    Args:
        model_dir: The bundle.
        output: The folder of the serving bundle; one that is there is replaced.
        params: The section `export` of params.yaml.
        root: The project folder, with the features that the model was trained with.
        with_report: Also compare all formats, in the page DIR.html beside the output.

    Returns:
        The manifest of the serving bundle.

    Raises:
        DataError: The bundle is damaged or cannot be exported, there are other features, or the
            output is something else than a serving bundle.
        ConfigError: The parameters name no runtime.
        ExportError: The exported model has other scores, or too large a logloss.
    """
    model_dir, output = expand_home(model_dir), expand_home(output)
    check_output(output, model_dir, root)
    if params.runtime is None:
        raise ConfigError(
            "export.runtime is null in params.yaml, so nothing says what will compute the scores;"
            " name it: --runtime onnx"
        )
    if with_report and output.absolute() == (root / SERVING).absolute():
        raise ConfigError(
            f"--compare writes a page beside the output, and {output} is an output of a stage; name"
            " a folder elsewhere, such as runs/serving"
        )
    bundle = load_bundle(model_dir)
    check_exportable(bundle, params)
    features = Artifact.open(root / FEATURES)
    check_same_state(bundle, features)
    with features.unchanged():
        rows = TestRows.read(features, bundle.state.schema)
    with replaced(output) as scratch, Progress("export", None, None) as progress:
        scratch.mkdir()
        shutil.copytree(model_dir / STATE, scratch / STATE)
        exporter = _Exporter(bundle, rows, progress)
        parity, logloss = exporter.export(scratch, params)
        manifest = write_serving_manifest(scratch, bundle, params, parity, logloss)
    log.info(
        f"model {manifest.version}: {output}; on {parity.rows:,} test rows its scores differ from"
        f" those of PyTorch by at most {parity.max_difference:.1e}"
    )
    if with_report:
        page = output.with_name(f"{output.name}.html")
        write_report(page, manifest, compare_formats(bundle, rows))
        log.info(f"report: {page}")
    return manifest


class NotExportableError(DataError):
    """The model has a part that cannot be exported. The message begins with `model VERSION: `."""


class _Exporter:
    """Exports a bundle, and compares what it exported with PyTorch on the test rows."""

    def __init__(self, bundle: Bundle, rows: TestRows, progress: Progress) -> None:
        self.bundle, self.rows, self.progress = bundle, rows, progress
        self.name = f"model {bundle.version}"
        self.num_rows = len(rows.labels)
        self.trained_scores = self._scored(bundle)

    def export(self, directory: Path, params: Export) -> tuple[Parity, Logloss]:
        """Write the model file in the formats that the parameters name, and check it."""
        model = with_formats(self.bundle.model, params.tables, params.mlps)
        program = trace(model, self.rows.dense.shape[1], self.rows.ids.shape[1])
        compute: Score
        compute_small: Score
        if params.runtime == "onnx":
            write_onnx(program, directory)
            compute = Runtime(directory / MODEL_FILE, usable_cpus()).scores
            compute_small, tolerance = Runtime(directory / MODEL_FILE).scores, 0.0
        else:
            write_package(program, directory)
            compute = compute_small = load_package(directory / PACKAGE_FILE)
            tolerance = MAX_DIFFERENCE  # PyTorch adds up in an order that depends on the batch
        scores_R = runtime_scores(compute, self.rows)
        self.progress.update(self.num_rows)
        expected_R = self.trained_scores
        if model is not self.bundle.model:
            expected_R = self._scored(replace(self.bundle, model=model))
        parity = check_parity(expected_R, scores_R, self.name)
        check_batches(compute_small, self.rows, scores_R, self.name, tolerance)
        logloss = Logloss(
            trained=self._logloss(self.trained_scores), exported=self._logloss(scores_R)
        )
        check_logloss(logloss, params, self.name)
        return parity, logloss

    def _scored(self, bundle: Bundle) -> NDArray[np.float32]:
        """Score all rows with PyTorch, (R,)."""
        scores_R = score(bundle, self.rows.frame)
        self.progress.update(self.num_rows)
        return scores_R

    def _logloss(self, scores_R: NDArray[np.float32]) -> float:
        value = self.rows.metrics(scores_R)["logloss"]
        assert value is not None
        return value


def check_exportable(bundle: Bundle, params: Export) -> None:
    """Check that the model has no part that cannot be exported.

    Raises:
        NotExportableError: It reads lists.
        ConfigError: It is compressed, and the parameters name other formats.
    """
    formats = [name for name in (params.tables, params.mlps) if name != "fp32"]
    if formats and bundle.manifest.compression is not None:
        raise ConfigError(
            f"model {bundle.version} is compressed, so its numbers have formats already; in"
            " params.yaml, set export.tables and export.mlps to fp32, which keeps them, or export"
            f" the model that it was made from, {bundle.manifest.compression.source_version}"
        )
    if names := [feature.name for feature in bundle.state.schema.list_features]:
        raise NotExportableError(
            f"model {bundle.version}: its columns {', '.join(names)} have lists, and models with"
            " lists cannot be exported yet; score rows with the bundle itself, by `clickmill"
            " predict`, or describe the columns as single values in the schema"
        )


def check_output(output: Path, model_dir: Path, root: Path) -> None:
    """Check that the output may be written, before any work is done.

    It may lie beside its bundle, where servers look for it, wherever that is.

    Raises:
        DataError: It is in a bundle or among the outputs of the stages, or it exists and is neither
            a serving bundle nor the reason why there is none.
    """
    if output.absolute() == (root / SERVING).absolute():
        return
    bundle = model_dir.resolve()
    if output.absolute() != bundle.with_name(bundle.name + SUFFIX):
        refuse_kept_folders(output, f"--output {output}")
    if not output.name:
        raise DataError(f"--output {output}: this is no name of a new folder; name one")
    parent = next(path for path in output.absolute().parents if os.path.lexists(path))
    if not parent.is_dir():
        raise DataError(f"--output {output}: {parent} is no folder; name a folder somewhere else")
    if output.is_symlink():
        raise DataError(f"--output {output}: this is a link; name the folder itself")
    is_empty = output.is_dir() and not any(output.iterdir())
    is_ours = any((output / name).is_file() for name in (SERVING_MANIFEST, NOT_EXPORTED))
    if output.exists() and not is_empty and not is_ours:
        raise DataError(
            f"--output {output}: this exists and is no serving bundle; name a new folder"
        )


def write_serving_manifest(
    directory: Path, bundle: Bundle, params: Export, parity: Parity, logloss: Logloss
) -> ServingManifest:
    """Write serving.json, after all other files of a serving bundle."""
    contents = {
        "format": 1,
        "model_version": bundle.version,
        "runtime": params.runtime,
        "opset": OPSET if params.runtime == "onnx" else None,
        "tables": params.tables,
        "mlps": params.mlps,
        "short_rows": bundle.manifest.params["ingest"]["short_rows"],
        "versions": {name: version(name) for name in PACKAGES},
        "parity": parity.model_dump(),
        "logloss": logloss.model_dump(),
        "files": {name: sha256_file(directory / name) for name in files_of(directory)},
    }
    write_checked_json(directory / SERVING_MANIFEST, contents)
    return read_serving_manifest(directory)
