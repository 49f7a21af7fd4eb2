"""The command `clickmill compress`: a smaller bundle from a trained one, and a report about it.

The bundle has the same feature state and can be used like any other: `clickmill predict` and
`clickmill stage compare` take it. The report is written beside it, as DIR.html. It has measured
speeds and so other bytes each time, while the same inputs give the same bundle.
"""

import os
import shutil
from pathlib import Path

from safetensors.torch import save_file

from common.artifact import Artifact
from common.bundle_layout import MANIFEST, weights_name
from common.config.loading import ConfigError
from common.files import DataError, read_json, replaced, sha256_file
from common.layout import FEATURES
from common.logs import get_logger
from common.progress import Progress
from common.user_files import expand_home, refuse_kept_folders
from training.compression.compress_model import Statistics, Steps, kept_rows_of
from training.compression.judge import Judge, Judged
from training.compression.recalibrate import Calibration, recalibrate
from training.compression.report import Report, as_mib, write_report
from training.compression.statistics import count_reads, hidden_widths, measure_activations
from training.compression.variants import ORIGINAL, Zeros, make_variant, name_of, variants_of
from training.evaluation.sample_weights import check_sample_weights
from training.inference.bundle import (
    READABLE_BY_ALL,
    Bundle,
    Manifest,
    files_in,
    git_state,
    load_bundle,
    write_manifest,
)
from training.inference.compressed_model import Compression
from training.models.dlrm import DLRM
from training.models.ensemble import Ensemble, members_of

log = get_logger("compress")


def compress(model_dir: Path, output: Path, steps: Steps, root: Path) -> list[Judged]:
    """Compress a bundle, and compare what each step costs and saves.

    Args:
        model_dir: The bundle.
        output: The folder of the compressed bundle; a compressed bundle that is there is replaced.
        steps: What is done.
        root: The project folder, with the features that the model was trained with.

    Returns:
        What the report compares; the original is the first.

    Raises:
        ConfigError: The steps change nothing.
        DataError: The bundle is damaged or compressed already, there are other features, or the
            output is something else than a compressed bundle.
    """
    if steps == Steps(bits=32):
        raise ConfigError("--bits 32 alone changes nothing: add --rows or --units, or fewer bits")
    model_dir, output = expand_home(model_dir), expand_home(output)
    check_output(output)
    bundle = load_original(model_dir)
    features = Artifact.open(root / FEATURES)
    num_rows = check_features(bundle, features, model_dir)
    variants = variants_of(steps)
    total = num_rows["train"] + (2 + len(variants)) * num_rows["valid"]
    with features.unchanged(), Progress("compress", total, None) as progress:
        members = members_of(bundle.model)
        statistics = Statistics(
            count_reads(members[0], bundle.state, features, progress.update),
            measure_activations(members, bundle.state.schema, features, progress.update),
        )
        judge = Judge(bundle.model, features, bundle.state.schema, progress.update)
        model = make_variant(bundle.model, steps, statistics)
        logits = judge.logits(model)
        calibration = judge.calibration(logits)
        recalibrate(model, calibration)
        write_bundle(output, model_dir, bundle.manifest, model, steps, calibration, root)
        compressed = load_bundle(output)
        judged: dict[Steps | Zeros, Judged] = {}
        judged[steps] = judge.judge(name_of(steps), compressed.model, logits, is_chosen=True)
        for variant in variants:
            if variant not in judged:
                judged[variant] = judge_variant(judge, bundle.model, variant, statistics)
    rows = [judge.judge_original(ORIGINAL), *(judged[variant] for variant in variants)]
    path = report_path(output)
    write_report(path, Report(bundle, compressed, steps, rows))
    log_summary(rows[0], judged[steps], compressed, output, path)
    return rows


def load_original(directory: Path) -> Bundle:
    """Load the bundle that is to be compressed.

    Raises:
        DataError: It is damaged, or compressed already.
    """
    bundle = load_bundle(directory)
    if bundle.manifest.compression is not None:
        raise DataError(
            f"{directory}: compressed already; name the bundle that it was made from, model"
            f" {bundle.manifest.compression.source_version}"
        )
    return bundle


def check_output(output: Path) -> None:
    """Check that the output may be written, before any work is done.

    Raises:
        DataError: It is in a bundle or among the outputs of the stages, it is something else than a
            compressed bundle, or it cannot be made with the report beside it.
    """
    refuse_kept_folders(output, f"--output {output}")
    if not output.name:
        raise DataError(f"--output {output}: this is no name of a new folder; name one")
    parent = next(path for path in output.parents if os.path.lexists(path))
    if not parent.is_dir():
        raise DataError(f"--output {output}: {parent} is no folder; name a folder somewhere else")
    if (report := report_path(output)).is_dir():
        raise DataError(f"--output {output}: the report {report} is a folder; name another output")
    if output.is_dir() and not output.is_symlink() and not any(output.iterdir()):
        return
    if output.exists() or output.is_symlink():
        manifest = output / MANIFEST
        values = read_json(manifest) if manifest.is_file() else None
        if not (isinstance(values, dict) and values.get("compression")):
            raise DataError(
                f"--output {output}: this exists and is no compressed bundle; name a new folder"
            )


def report_path(output: Path) -> Path:
    """Return the path of the report, beside the bundle."""
    return output.with_name(f"{output.name}.html")


def check_features(bundle: Bundle, features: Artifact, directory: Path) -> dict[str, int]:
    """Check that the features are those that the model was trained with.

    Returns:
        The number of training and of validation rows.

    Raises:
        DataError: They are others, or there are no validation rows.
    """
    recorded = bundle.manifest.data
    for split in ("train", "valid"):
        for name in features.names(split):
            if recorded.get(f"{FEATURES.name}/{name}") != features.files[name].sha256:
                raise DataError(
                    f"{features.folder / name} is not what the model in {directory} was trained"
                    " with; go back to its parameters and log and run clickmill run, or name the"
                    " model that belongs to these features"
                )
    splits = features.read_json("data.json")["splits"]
    num_rows = {split: splits[split]["num_rows"] for split in ("train", "valid")}
    if not num_rows["valid"]:
        raise DataError(f"{features.folder / 'valid'}: no rows, by which models are judged")
    check_sample_weights(features, bundle.state.schema)
    return num_rows


def judge_variant(
    judge: Judge, original: DLRM | Ensemble, variant: Steps | Zeros, statistics: Statistics
) -> Judged:
    """Make a variant and judge it."""
    model = make_variant(original, variant, statistics)
    return judge.judge(name_of(variant), model, judge.logits(model))


def write_bundle(
    output: Path,
    source: Path,
    manifest: Manifest,
    model: DLRM | Ensemble,
    steps: Steps,
    calibration: Calibration,
    root: Path,
) -> None:
    """Write a compressed bundle.

    Args:
        output: Its folder.
        source: The bundle that was compressed, whose other files are copied.
        manifest: The manifest of that bundle.
        model: The compressed model, recalibrated.
        steps: What was done.
        calibration: The recalibration.
        root: The project folder, whose git history is recorded.
    """
    members = members_of(model)
    compression = Compression(
        version=1,
        source_sha256=sha256_file(source / MANIFEST),
        git=git_state(root),
        bits=steps.bits,
        rows=steps.rows,
        units=steps.units,
        kept_rows=kept_rows_of(members[0]),  # the same for all models of an ensemble
        bottom_mlp=hidden_widths(members[0].bottom),
        top_mlp=hidden_widths(members[0].top),
        scale=calibration.scale,
        shift=calibration.shift,
    )
    weights = [weights_name(number) for number in range(len(members))]
    with replaced(output) as scratch:
        for name in manifest.files:
            if name not in weights:
                (scratch / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / name, scratch / name)
        for name, member in zip(weights, members, strict=True):
            tensors = {key: tensor.contiguous() for key, tensor in member.state_dict().items()}
            save_file(tensors, scratch / name)
            (scratch / name).chmod(READABLE_BY_ALL)
        files = {name: sha256_file(scratch / name) for name in files_in(scratch)}
        write_manifest(
            scratch, manifest.model_copy(update={"compression": compression, "files": files})
        )


def log_summary(
    original: Judged, chosen: Judged, compressed: Bundle, output: Path, report: Path
) -> None:
    """Log what the compression costs and saves."""
    before, after = original.footprint.bytes, chosen.footprint.bytes
    changes = []
    for name, label in (("logloss", "logloss"), ("auc", "AUC")):
        old, new = original.metrics[name], chosen.metrics[name]
        if old is not None and new is not None:
            changes.append(f"{label} {new - old:+.5f}")
    log.info(
        f"model {compressed.version}: {as_mib(after):,.2f} MiB instead of {as_mib(before):,.2f}"
        f" ({before / after:.1f} times smaller); on the validation rows {', '.join(changes)}"
    )
    log.info(f"bundle: {output}; report: {report}")
