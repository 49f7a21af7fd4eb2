"""The export: from a bundle to a serving bundle, which is scored without PyTorch.

The stage `export` makes artifacts/serving from artifacts/model; `clickmill export` does the same
for any bundle and folder. No export is written whose scores differ from those of PyTorch, or whose
number formats cost more logloss than params.yaml allows.
"""

import os
import shutil
from importlib.metadata import version
from pathlib import Path

from common.artifact import Artifact
from common.bundle_layout import MODEL
from common.checked_json import write_checked_json
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
    SERVING_MANIFEST,
    STATE,
    Parity,
    ServingManifest,
    files_of,
    read_serving_manifest,
)
from training.export.onnx_file import OPSET, write_onnx
from training.export.parity import check_batches, check_parity, runtime_scores
from training.export.test_rows import TestRows
from training.export.traced_model import trace
from training.inference.bundle import Bundle, check_same_state, load_bundle
from training.inference.score import score

log = get_logger("export")

PACKAGES = ("clickmill", "torch", "onnx", "onnxscript", "onnxruntime", "numpy")


def export(model_dir: Path, output: Path, params: Export, root: Path) -> ServingManifest:
    """Export a bundle.

    Args:
        model_dir: The bundle.
        output: The folder of the serving bundle; one that is there is replaced.
        params: The section `export` of params.yaml.
        root: The project folder, with the features that the model was trained with.

    Returns:
        The manifest of the serving bundle.

    Raises:
        DataError: The bundle is damaged or cannot be exported, there are other features, or the
            output is something else than a serving bundle.
        ExportError: The exported model has other scores, or too large a logloss.
    """
    model_dir, output = expand_home(model_dir), expand_home(output)
    check_output(output, root)
    bundle = load_bundle(model_dir)
    check_exportable(bundle)
    features = Artifact.open(root / FEATURES)
    check_same_state(bundle, features)
    with features.unchanged():
        rows = TestRows.read(features, bundle.state.schema)
    with replaced(output) as scratch, Progress("export", len(rows.labels), None) as progress:
        scratch.mkdir()
        shutil.copytree(model_dir / STATE, scratch / STATE)
        write_onnx(trace(bundle.model, bundle.state), scratch)
        expected_R = score(bundle, rows.frame)
        progress.update(len(rows.labels))
        runtime = Runtime(scratch / MODEL_FILE, usable_cpus())
        scores_R = runtime_scores(runtime.scores, rows)
        parity = check_parity(expected_R, scores_R, f"model {bundle.version}")
        one_thread = Runtime(scratch / MODEL_FILE)
        check_batches(one_thread.scores, rows, scores_R, f"model {bundle.version}")
        manifest = write_serving_manifest(scratch, bundle, params, parity)
    log.info(
        f"model {manifest.version}: {output}; on {parity.rows:,} test rows its scores differ from"
        f" those of PyTorch by at most {parity.max_difference:.1e}"
    )
    return manifest


def export_stage(params: Export, root: Path) -> None:
    """Export artifacts/model to artifacts/serving; see `export`."""
    export(root / MODEL, root / SERVING, params, root)


def check_exportable(bundle: Bundle) -> None:
    """Check that the model has no part that cannot be exported.

    Raises:
        DataError: It reads lists.
    """
    if names := [feature.name for feature in bundle.state.schema.list_features]:
        raise DataError(
            f"model {bundle.version}: its columns {', '.join(names)} have lists, and models with"
            " lists cannot be exported yet; score rows with the bundle itself, by `clickmill"
            " predict`, or describe the columns as single values in the schema"
        )


def check_output(output: Path, root: Path) -> None:
    """Check that the output may be written, before any work is done.

    Raises:
        DataError: It is in a bundle or among the outputs of the stages, or it exists and is no
            serving bundle.
    """
    if output.resolve() != (root / SERVING).resolve():
        refuse_kept_folders(output, f"--output {output}")
    if not output.name:
        raise DataError(f"--output {output}: this is no name of a new folder; name one")
    parent = next(path for path in output.absolute().parents if os.path.lexists(path))
    if not parent.is_dir():
        raise DataError(f"--output {output}: {parent} is no folder; name a folder somewhere else")
    if output.is_symlink():
        raise DataError(f"--output {output}: this is a link; name the folder itself")
    is_empty = output.is_dir() and not any(output.iterdir())
    if output.exists() and not is_empty and not (output / SERVING_MANIFEST).is_file():
        raise DataError(
            f"--output {output}: this exists and is no serving bundle; name a new folder"
        )


def write_serving_manifest(
    directory: Path, bundle: Bundle, params: Export, parity: Parity
) -> ServingManifest:
    """Write serving.json, after all other files of a serving bundle."""
    contents = {
        "format": 1,
        "model_version": bundle.version,
        "runtime": params.runtime,
        "opset": OPSET,
        "tables": params.tables,
        "mlps": params.mlps,
        "short_rows": bundle.manifest.params["ingest"]["short_rows"],
        "versions": {name: version(name) for name in PACKAGES},
        "parity": parity.model_dump(),
        "files": {name: sha256_file(directory / name) for name in files_of(directory)},
    }
    write_checked_json(directory / SERVING_MANIFEST, contents)
    return read_serving_manifest(directory)
