"""Every row to model inputs, a day at a time: written to its splits' files, or taken over from the last run as it is."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from common.files import read_json, sha256_file, write_json
from common.logs import get_logger
from common.lookahead import map_ahead
from common.parquet import ParquetWriter
from common.progress import Progress
from features.encode.days import ROW_GROUP_ROWS, Day
from features.encode.feature_state import FeatureState
from features.encode.split import SPLITS, Codes, SplitOf
from features.encode.vocabulary_growth import Lineage
from features.quality.data_profile import DayProfile

log = get_logger("features")

BATCH_ROWS = 4 * ROW_GROUP_ROWS  # transformed together
AHEAD = 2  # batches that are transformed while another one is written


@dataclass(frozen=True)
class Encoded:
    """days/day_NNN.json. key: a hash of all that decides the files; files: split -> SHA-256."""

    key: str
    files: dict[str, str]
    profile: dict[str, Any]


@dataclass(frozen=True)
class Encoder:
    """Gives the rows of each day their ids, or takes over the files of an earlier run in `old` that would come out the same."""

    state: FeatureState
    lineage: Lineage
    old: Path
    target: Path
    generations: dict[int, FeatureState] = field(default_factory=dict)

    def encode(self, days: list[Day], split_of: SplitOf, root: Path) -> list[dict[str, Any]]:
        """The days' files; returns the profiles of their rows."""
        (self.target / "days").mkdir()
        for split in SPLITS:
            (self.target / split).mkdir()
        known = self._known()
        keys = [self._key(day, split_of(k)) for k, day in enumerate(days)]
        taken = {k: found for k, key in enumerate(keys) if (found := known.get(key))}
        profiles = []
        with Progress(
            "features", sum(day.num_rows for k, day in enumerate(days) if k not in taken), root
        ) as progress:
            transformed = self._transformed(
                [(day, split_of(k)) for k, day in enumerate(days) if k not in taken]
            )
            for k, day in enumerate(days):
                encoded = (
                    self._take_over(*taken[k], k)
                    if k in taken
                    else self._write(day, k, split_of(k), keys[k], transformed, progress)
                )
                write_json(self.target / "days" / f"{day_file(k)}.json", asdict(encoded))
                profiles.append(encoded.profile)
        if taken:
            log.info(f"{len(taken)} days known from before, not read again")
        return profiles

    def _generation(self, day: Day, codes: Codes) -> int:
        known = self.lineage.find(day)
        return known.generation if known and not codes.any() else len(self.lineage.sizes) - 1

    def _key(self, day: Day, codes: Codes) -> str:
        split = hashlib.sha256(codes.tobytes()).hexdigest()
        made_of = [
            self.lineage.made_by,
            self.lineage.chain[self._generation(day, codes)],
            day.sha256,
            day.start,
            day.end,
            split,
        ]
        return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()

    def _known(self) -> dict[str, tuple[Encoded, str]]:
        """By key, the days of the last run whose files are what they were, and the name of their files."""
        found = [
            (Encoded(**read_json(path)), path.stem)
            for path in sorted((self.old / "days").glob("*.json"))
        ]
        return {
            encoded.key: (encoded, name) for encoded, name in found if self._is_whole(encoded, name)
        }

    def _is_whole(self, encoded: Encoded, name: str) -> bool:
        paths = {
            self.old / split / f"{name}.parquet": sha256 for split, sha256 in encoded.files.items()
        }
        return all(path.exists() and sha256_file(path) == sha256 for path, sha256 in paths.items())

    def _take_over(self, encoded: Encoded, name: str, k: int) -> Encoded:
        for split in encoded.files:
            os.link(
                self.old / split / f"{name}.parquet", self.target / split / f"{day_file(k)}.parquet"
            )
        return encoded

    def _transformed(
        self, days: list[tuple[Day, Codes]]
    ) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
        """Every batch of these days, raw and as model inputs; the next ones are made while the caller writes this one."""

        def transform(batch: tuple[FeatureState, Day, int]) -> tuple[pl.DataFrame, pl.DataFrame]:
            state, day, start = batch
            raw = day.rows(start, min(start + BATCH_ROWS, day.num_rows)).collect()
            return raw, state.transform(raw)

        states = [(self._state_of(day, codes), day) for day, codes in days]
        return map_ahead(
            transform,
            (
                (state, day, start)
                for state, day in states
                for start in range(0, day.num_rows, BATCH_ROWS)
            ),
            AHEAD,
        )

    def _state_of(self, day: Day, codes: Codes) -> FeatureState:
        generation = self._generation(day, codes)
        if generation not in self.generations:
            self.generations[generation] = self.state.first(self.lineage.sizes[generation])
        return self.generations[generation]

    def _write(
        self,
        day: Day,
        k: int,
        codes: Codes,
        key: str,
        transformed: Iterator[tuple[pl.DataFrame, pl.DataFrame]],
        progress: Progress,
    ) -> Encoded:
        """transformed: the batches of this day and of those after it."""
        state = self._state_of(day, codes)
        splits = [SPLITS[code] for code in np.unique(codes)]
        paths = {split: self.target / split / f"{day_file(k)}.parquet" for split in splits}
        profile = DayProfile(state.schema, state.cardinalities, state.ids == "frequency")
        with ExitStack() as stack:
            writers = {
                split: stack.enter_context(ParquetWriter(path, state.output_columns, ROW_GROUP_ROWS))
                for split, path in paths.items()
            }
            for start in range(0, day.num_rows, BATCH_ROWS):
                raw, ready = next(transformed)
                codes_B = codes[start : start + raw.height]
                for code in np.unique(codes_B):
                    mask = None if (codes_B == code).all() else pl.Series(codes_B == code)
                    of_split = (
                        [raw, ready] if mask is None else [raw.filter(mask), ready.filter(mask)]
                    )
                    writers[SPLITS[code]].write(of_split[1])
                    profile.add(SPLITS[code], *of_split)
                progress.update(raw.height)
        return Encoded(
            key, {split: sha256_file(path) for split, path in paths.items()}, profile.summary()
        )


def day_file(k: int) -> str:
    """The name, without its ending, of the files of the log's day k."""
    return f"day_{k:03d}"
