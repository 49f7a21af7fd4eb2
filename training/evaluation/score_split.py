"""The scores of a split, and the sums of its metrics: overall, by day and by frequency bucket."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from common.artifact import Artifact
from common.files import DataError
from common.parquet import ParquetWriter
from common.progress import Progress
from training.evaluation.external_sort import NUM_CELLS, Ranking
from training.evaluation.frequency_buckets import FrequencyBuckets
from training.evaluation.metrics import MetricSums, sums_of_subsets
from training.evaluation.row_groups import day_files, read_row_groups
from training.evaluation.sample_weights import no_row_counts
from training.inference.bundle import Bundle
from training.inference.score import score

SCORES = pl.Schema({"split": pl.String, "row": pl.UInt64, "label": pl.UInt8, "score": pl.Float32})


@dataclass(frozen=True)
class SplitSums:
    """The sums of the metrics of a split.

    Attributes:
        overall: The sums of all rows.
        days: Number of the day -> its sums. A day without rows, or with weights
            of 0 only, has no entry.
        frequency_buckets: Name of the bucket -> its sums. A bucket without
            rows, or with weights of 0 only, has no entry.
    """

    overall: MetricSums
    days: dict[int, MetricSums]
    frequency_buckets: dict[str, MetricSums]


def score_split(
    split: str,
    features: Artifact,
    bundle: Bundle,
    buckets: FrequencyBuckets | None,
    writer: ParquetWriter,
    progress: Progress,
    scratch: Path,
) -> SplitSums:
    """Score the rows of a split, one row group at a time; memory does not grow with the rows.

    Args:
        split: Name of the split.
        features: artifacts/features.
        bundle: The model.
        buckets: The frequency buckets; None computes no metrics by bucket.
        writer: Receives the scores, with the columns SCORES.
        progress: Receives the number of rows that were scored.
        scratch: A folder for the file in which the rows are sorted.

    Raises:
        DataError: The split has no rows, more days than can be distinguished, or sample weights
            that are all 0.
    """
    days = list(day_files(features, split))
    num_buckets = len(buckets.names) if buckets else 1
    if len(days) * num_buckets > NUM_CELLS:
        raise DataError(
            f"{features.folder / split}: {len(days)} days of {num_buckets} frequency buckets; "
            f"at most {NUM_CELLS // num_buckets} days can be evaluated"
        )
    sample_weight = bundle.state.schema.sample_weight
    ranking = Ranking(scratch)
    num_rows = 0
    for day, rows in read_row_groups(features, split):
        labels = rows[bundle.state.schema.label].to_numpy()
        scores = score(bundle, rows, partial(_name_row, features.folder / split, num_rows))
        bucket = buckets.bucket_of_id[rows[buckets.column].to_numpy()] if buckets else 0
        weights = rows[sample_weight].to_numpy() if sample_weight else None
        ranking.add(labels, scores, days.index(day) * num_buckets + bucket, weights)
        row_numbers = np.arange(num_rows, num_rows + rows.height, dtype=np.uint64)
        columns = {
            "split": [split] * rows.height,
            "row": row_numbers,
            "label": labels,
            "score": scores,
        }
        writer.write(pl.DataFrame(columns, schema=SCORES))
        num_rows += rows.height
        progress.update(rows.height)
    if not num_rows:
        raise DataError(
            f"{features.folder / split}: no {split} rows; "
            f"run the features stage with a longer log or a larger features.split.{split}_days"
        )
    if ranking.cell_weights is not None and not ranking.cell_weights.any():
        raise no_row_counts(features, split, sample_weight)
    return _split_sums(ranking, days, buckets.names if buckets else [])


def _name_row(directory: Path, first: int, k: int) -> str:
    return f"{directory}: row {first + k}"


def _split_sums(ranking: Ranking, days: Sequence[int], bucket_names: Sequence[str]) -> SplitSums:
    """Compute all sums in one pass.

    A cell of the ranking is a day and a bucket; the buckets of a day have consecutive numbers.
    """
    cells = np.arange(NUM_CELLS)
    num_buckets = max(len(bucket_names), 1)
    subsets = [np.ones(NUM_CELLS, bool)]
    subsets += [cells // num_buckets == k for k in range(len(days))]
    subsets += [cells % num_buckets == k for k in range(len(bucket_names))]
    overall, *rest = sums_of_subsets(ranking, subsets)
    of_days, of_buckets = rest[: len(days)], rest[len(days) :]
    return SplitSums(
        overall,
        {day: sums for day, sums in zip(days, of_days, strict=True) if sums.total_weight},
        {
            name: sums
            for name, sums in zip(bucket_names, of_buckets, strict=True)
            if sums.total_weight
        },
    )
