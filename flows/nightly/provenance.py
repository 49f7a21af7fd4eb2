"""Explains what a model or a file of scores was made from, down to the raw log and the code."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from common.bundle_layout import (
    MANIFEST,
    MODEL_VERSION_KEY,
    STATE,
    TEACHERS_PREFIX,
    WARM_START_KEY,
    version_from_sha256,
)
from common.files import DataError, read_json
from common.user_files import expand_home
from flows.locks import registry_lock
from flows.nightly.record import NightlyRun
from flows.nightly.repository import NightlyRepository
from flows.nightly.served_traffic import describe_served


def explain(root: Path, subject: str) -> Iterator[str]:
    """Yield lines that lead from scores or a model to the raw log files.

    Args:
        root: The repository.
        subject: A model, as `NightlyRepository.find` takes it, or a file of scores.

    Raises:
        DataError: The subject is neither, or the bundle is neither in DVC's cache nor at its
            remote.
    """
    repository = NightlyRepository(root)
    scores = root / expand_home(Path(subject))
    if scores.is_file():
        version, num_rows = read_scores_origin(scores)
        yield f"scores      {subject}: {num_rows:,} rows, by model {version}"
        subject = version
    run = repository.find(subject)
    yield from explain_run(repository, run)
    with registry_lock(root):
        bundle = repository.restore_bundle(run)
    yield from explain_bundle(bundle)
    commit = repository.git.run("rev-list", "-1", run.tag)
    yield f"record      tag {run.tag}, commit {commit}"
    yield f"replay      clickmill nightly replay {run.model}"


def read_scores_origin(path: Path) -> tuple[str, int]:
    """Return the version of the model that made a file of scores, and the number of scores.

    Raises:
        DataError: The file is not a file of scores.
    """
    try:
        metadata = pq.read_metadata(path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: this is not a file of scores ({error}); "
            "name a Parquet file that `clickmill predict` has written"
        ) from None
    version = (metadata.metadata or {}).get(MODEL_VERSION_KEY.encode())
    if version is None:
        raise DataError(
            f"{path}: the file does not name the model that made it; "
            "write it again with `clickmill predict`"
        )
    return version.decode(errors="backslashreplace"), metadata.num_rows


def explain_run(repository: NightlyRepository, run: NightlyRun) -> Iterator[str]:
    """Yield lines about a run: its model, time in production, log changes, checks, metrics."""
    yield f"model       {run.model}, bundle {run.version}"
    for assignment in repository.assignments():
        if assignment.run == run.number:
            yield f"production  from {assignment.at:%Y-%m-%d %H:%M}: {assignment.reason}"
    start = f"from the artifacts of nightly run {run.base}" if run.base else "from scratch"
    yield f"run         {run.headline}"
    yield f"began       {run.started:%Y-%m-%d %H:%M} UTC, took {run.seconds:,.0f} s, {start}"
    for kind, names in run.log_changes.items():
        yield f"log         {kind}: {', '.join(names)}"
    if figures := run.served_figures:
        yield f"served      {describe_served(figures)}"
    if not run.decision:
        return
    for check in run.decision["checks"]:
        result = "passed" if check["passed"] else "FAILED"
        yield f"check       {result}  {check['name']}: {check['message']}"
    metrics = run.decision["challenger"]
    auc = "none" if metrics["auc"] is None else f"{metrics['auc']:.4f}"
    yield (
        f"test        AUC {auc}  logloss {metrics['logloss']:.4f}  "
        f"{metrics['num_rows']:,} rows of {run.until}"
    )


def explain_bundle(bundle: Path) -> Iterator[str]:
    """Yield lines about a bundle: parameters, vocabularies, hashes of the data, and the code."""
    manifest, state = read_json(bundle / MANIFEST), read_json(bundle / STATE / "state.json")
    for section, values in manifest["params"].items():
        yield f"params      {section}: {_format_params(values)}"
    vocabularies = (bundle / STATE / "vocabulary").glob("*.parquet")
    num_values = sum(pq.read_metadata(path).num_rows for path in vocabularies)
    yield (
        f"vocabulary  {num_values:,} values of {len(state['sha256'])} columns, "
        f"fingerprint {state['fingerprint']}"
    )
    for name, sha256 in manifest["data"].items():
        if name.endswith(".parquet") and "/day_" in name:
            yield f"day shard   {name}  SHA-256 {sha256}"
    for name, sha256 in manifest["data"].items():
        if name.startswith("raw/"):
            yield f"raw file    {name.removeprefix('raw/')}  SHA-256 {sha256}"
    if start := manifest["data"].get(WARM_START_KEY):
        yield f"warm start  from the weights of model {version_from_sha256(start)}"
    for key, teacher in manifest["data"].items():
        if key.startswith(TEACHERS_PREFIX):
            yield f"teacher     model {version_from_sha256(teacher)}"
    versions = (f"{name} {version}" for name, version in manifest["versions"].items())
    yield f"made with   {', '.join(versions)}"
    modified = ", with uncommitted changes" if manifest["git"]["modified"] else ""
    yield f"code        last changed by commit {manifest['git']['commit']}{modified}"


def _format_params(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_format_value(value)}" for name, value in values.items())


def _format_value(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{_format_params(value)}}}"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)
