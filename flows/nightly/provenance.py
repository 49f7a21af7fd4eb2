"""Where a model or a file of scores comes from, down to the bytes of the raw log and the commit of the code."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from common.bundle_layout import (
    MANIFEST,
    MODEL_VERSION_KEY,
    STATE,
    WARM_START_KEY,
    version_from_sha256,
)
from common.files import DataError, read_json
from flows.nightly.git import git
from flows.nightly.record import Night
from flows.nightly.registry import assignments, find, restore


def why(root: Path, asked: str) -> Iterator[str]:
    """Lines, from the scores or the model to the raw files. asked: a model as `clickmill models` names it, or a file of scores.

    Raises DataError for what is neither, and where the bundle is neither here nor at DVC's remote.
    """
    if (root / asked).is_file():
        version, num_rows = model_of(root / asked)
        yield f"scores      {asked}: {num_rows:,} rows, by model {version}"
        asked = version
    night = find(root, asked)
    yield from of_night(root, night)
    yield from of_bundle(root, restore(root, night), night)


def model_of(path: Path) -> tuple[str, int]:
    """The version of the bundle that made a file of scores, and how many there are."""
    try:
        metadata = pq.read_metadata(path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: no file of scores ({error}); name one that `clickmill predict` made"
        ) from None
    version = (metadata.metadata or {}).get(MODEL_VERSION_KEY.encode())
    if version is None:
        raise DataError(
            f"{path} does not say which model made it; `clickmill predict` of this version writes it down"
        )
    return version.decode(), metadata.num_rows


def of_night(root: Path, night: Night) -> Iterator[str]:
    served = [one for one in assignments(root) if one.night == night.number]
    yield f"model       {night.model}, bundle {night.version}"
    for one in served:
        yield f"production  from {one.at:%Y-%m-%d %H:%M}: {one.why}"
    yield (
        f"night       {night.headline}, {night.when:%Y-%m-%d %H:%M} UTC, {night.seconds:,.0f} s"
        + (f", from the artifacts of night {night.base}" if night.base else ", from nothing")
    )
    for told, names in night.arrivals.items():
        yield f"log         {told}: {', '.join(names)}"
    assert night.decision
    for check in night.decision["checks"]:
        yield f"{'check' if check['passed'] else 'FAILED':<11} {check['name']}: {check['found']}"
    figures = night.decision["challenger"]
    yield f"test        AUC {_figure(figures['auc'])}  logloss {_figure(figures['logloss'])}  {figures['num_rows']:,} rows of {night.until}"


def of_bundle(root: Path, bundle: Path, night: Night) -> Iterator[str]:
    manifest, state = read_json(bundle / MANIFEST), read_json(bundle / STATE / "state.json")
    for section, values in manifest["params"].items():
        yield f"params      {section}: " + ", ".join(
            f"{name} {_short(value)}" for name, value in values.items()
        )
    num_values = sum(
        pq.read_metadata(path).num_rows for path in (bundle / STATE / "vocabulary").glob("*.parquet")
    )
    yield f"vocabulary  {num_values:,} values of {len(state['sha256'])} columns, fingerprint {state['fingerprint']}"
    for name, sha256 in manifest["data"].items():
        if name.endswith(".parquet") and "/day_" in name:
            yield f"day shard   {name}  SHA-256 {sha256}"
    for name, sha256 in manifest["data"].items():
        if name.startswith("raw/"):
            yield f"raw file    {name.removeprefix('raw/')}  SHA-256 {sha256}"
    if start := manifest["data"].get(WARM_START_KEY):
        yield f"started     from the weights of model {version_from_sha256(start)}"
    yield "made with   " + ", ".join(
        f"{name} {version}" for name, version in manifest["versions"].items()
    )
    modified = ", with changes that were not committed" if manifest["git"]["modified"] else ""
    yield f"code        last changed by commit {manifest['git']['commit']}{modified}"
    yield f"all of it   tag {night.tag}, commit {git(root, 'rev-list', '-1', night.tag)}; made again by: clickmill replay {night.model}"


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} {_short(inner)}" for name, inner in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
