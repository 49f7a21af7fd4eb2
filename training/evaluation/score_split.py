"""The rows of a split through the model, and what their figures are made from: overall, per day and per band of frequency."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from common.files import DataError
from common.parquet import Writer
from common.progress import Progress
from training.evaluation.external_sort import NUM_CELLS, Ranking
from training.evaluation.frequency_buckets import Bands
from training.evaluation.metrics import Sums, sums_of
from training.inference.bundle import Bundle
from training.inference.score import score

SCORES = pl.Schema({"split": pl.String, "row": pl.UInt64, "label": pl.UInt8, "score": pl.Float32})


@dataclass(frozen=True)
class Judged:
    """The sums of a split's rows; those of its days, by number, and of the bands that have rows, by name."""

    overall: Sums
    days: dict[int, Sums]
    bands: dict[str, Sums]


def judge(
    split: str,
    directory: Path,
    bundle: Bundle,
    bands: Bands | None,
    writer: Writer,
    progress: Progress,
    scratch: Path,
) -> Judged:
    """Score directory/day_NNN.parquet, day after day, a row group at a time; scores go to the writer, sorted runs to a file in scratch.

    Memory does not grow with the rows. Raises DataError for a split without rows, or with more days than can be told apart.
    """
    days = [_day(path) for path in _files(directory)]
    num_bands = len(bands.names) if bands else 1
    if len(days) * num_bands > NUM_CELLS:
        raise DataError(
            f"{directory}: {len(days)} days of {num_bands} bands; at most {NUM_CELLS // num_bands} days can be told apart"
        )
    ranking = Ranking(scratch)
    num_rows = 0
    for day, frame in _row_groups(directory):
        labels, scores = frame[bundle.state.schema.label].to_numpy(), score(bundle, frame)
        band = bands.of_id[frame[bands.column].to_numpy()] if bands else 0
        ranking.add(labels, scores, days.index(day) * num_bands + band)
        rows = np.arange(num_rows, num_rows + frame.height, dtype=np.uint64)
        writer.write(
            pl.DataFrame(
                {"split": [split] * frame.height, "row": rows, "label": labels, "score": scores},
                schema=SCORES,
            )
        )
        num_rows += frame.height
        progress.update(frame.height)
    if not num_rows:
        raise DataError(
            f"{directory}: no {split} rows; run the features stage with a longer log or a larger features.split.{split}_days"
        )
    return _judged(ranking, days, bands.names if bands else [])


def _judged(ranking: Ranking, days: list[int], bands: list[str]) -> Judged:
    """A cell of the ranking is a day and a band, the bands of a day side by side."""
    cells = np.arange(NUM_CELLS)
    num_bands = len(bands) or 1
    views = [np.ones(NUM_CELLS, bool)]
    views += [cells // num_bands == k for k in range(len(days))]
    views += [cells % num_bands == k for k in range(len(bands))]
    overall, *rest = sums_of(ranking, views)
    of_day, of_band = zip(days, rest, strict=False), zip(bands, rest[len(days) :], strict=True)
    return Judged(
        overall,
        {day: sums for day, sums in of_day if sums.num_rows},
        {band: sums for band, sums in of_band if sums.num_rows},
    )


def _files(directory: Path) -> list[Path]:
    return sorted(directory.glob("day_*.parquet"))


def _day(path: Path) -> int:
    return int(path.stem.removeprefix("day_"))


def _row_groups(directory: Path) -> Iterator[tuple[int, pl.DataFrame]]:
    for path in _files(directory):
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                yield _day(path), pl.DataFrame(file.read_row_group(group))
