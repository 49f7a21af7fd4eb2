"""The sample log: Criteo's format and statistics from a seed, with a planted signal, so that the best attainable metrics are known."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from common.config.loading import ConfigError
from common.files import replaced, write_json
from common.lookahead import map_ahead
from common.numbers import ceil_div
from common.parquet import ParquetWriter
from common.progress import Progress
from features.encode.split import day_bounds
from features.sample.optimum import Best
from features.sample.sample_schema import SampleLog
from features.sample.signal import Signal, sigmoid
from features.sample.values import Bools, DayValues, Floats, Rows, Values, Words
from features.schema.schema import Schema, text_format

CHUNK_ROWS = (
    1 << 16
)  # drawn together, from a generator seeded by (seed, day, index): the bytes depend on it
PILOT_ROWS = (
    1 << 16
)  # the signal is scaled, and its bias solved, on rows drawn apart from the log's, over PILOT_DAYS of its days
PILOT_DAYS = 32
LOG, PILOT = 0, 1  # streams of random numbers
NUM_THREADS = (
    2  # NumPy and Polars let go of Python's lock; more threads wait for the one that writes
)
TRUTH = pl.Schema({"probability": pl.Float64})
HEX = np.frombuffer(
    "".join(f"{word:04x}" for word in range(1 << 16)).encode(), np.uint32
)  # the four letters of two bytes


@dataclass(frozen=True)
class Chunk:
    """Rows: their true click probabilities (B,), the labels drawn from them (B,), and their lines."""

    probabilities: Floats
    labels: Bools
    text: bytes


def write_sample(
    path: Path, num_rows: int, num_days: int, seed: int, schema: Schema, progress: Progress
) -> dict[str, Any]:
    """Write a log of num_rows rows over num_days days in time order (sizes by divmod, the extra rows to the first days).

    Beside path: PATH.truth.parquet, one float64 column `probability` in row order, and PATH.optimum.json, the best attainable
    metrics (features/sample/optimum.py) over all rows and in a list `days`, which is also returned. The bytes depend on num_rows,
    num_days, seed and schema alone. Each file is whole or absent. Raises ConfigError for impossible arguments.
    """
    sample = _checked(num_rows, num_days, seed, schema)
    total, days = Best(), []
    with ExitStack() as files:
        log = files.enter_context(files.enter_context(replaced(path)).open("wb"))
        truth = files.enter_context(
            ParquetWriter(files.enter_context(replaced(_beside(path, "truth.parquet"))), TRUTH)
        )
        if text_format(schema).header:
            log.write((text_format(schema).separator.join(schema.names) + "\n").encode())
        maker = _Maker(schema, sample, seed, num_days)
        for day, (start, end) in enumerate(pairwise(day_bounds([num_rows], num_days))):
            best = Best()
            for chunk in maker.chunks(day, end - start):
                log.write(chunk.text)
                truth.write(pl.DataFrame([chunk.probabilities], schema=TRUTH))
                best.add(chunk.probabilities, chunk.labels)
                progress.update(len(chunk.labels))
            total.merge(best)
            days.append(best.metrics())
        optimum = {**total.metrics(), "days": days}
        write_json(_beside(path, "optimum.json"), optimum)
    return optimum


class _Maker:
    """Makes the chunks of a day, a few ahead of the one asked for; each depends on its place alone, never on the threads."""

    def __init__(self, schema: Schema, sample: SampleLog, seed: int, num_days: int) -> None:
        self.schema, self.seed = schema, seed
        self.values = Values(schema, sample)
        days = range(0, num_days, ceil_div(num_days, PILOT_DAYS))
        pilot = [
            self.values.day(day).draw(PILOT_ROWS // len(days), self._random(PILOT, day, 0))
            for day in days
        ]
        self.signal = Signal.fitted(schema, sample, seed, Rows.concat(pilot))

    def chunks(self, day: int, num_rows: int) -> Iterator[Chunk]:
        values = self.values.day(day)

        def make_chunk(index: int) -> Chunk:
            num_chunk_rows = min(CHUNK_ROWS, num_rows - index * CHUNK_ROWS)
            return self._chunk(values, num_chunk_rows, self._random(LOG, day, index))

        return map_ahead(make_chunk, range(ceil_div(num_rows, CHUNK_ROWS)), NUM_THREADS)

    def _chunk(self, values: DayValues, num_rows: int, random: np.random.Generator) -> Chunk:
        rows = values.draw(num_rows, random)
        probabilities_B = sigmoid(self.signal.logits(rows))
        labels_B = random.random(num_rows) < probabilities_B
        return Chunk(probabilities_B, labels_B, _text(rows, labels_B, self.schema))

    def _random(self, *place: int) -> np.random.Generator:
        return np.random.Generator(np.random.SFC64([self.seed, *place]))


def _checked(num_rows: int, num_days: int, seed: int, schema: Schema) -> SampleLog:
    for name, value, least in [("rows", num_rows, 1), ("days", num_days, 1), ("seed", seed, 0)]:
        if value < least:
            raise ConfigError(f"sample: {name} must be at least {least}, found {value}")
    if schema.sample is None:
        raise ConfigError(
            "sample: this schema has no section `sample`, which says what to imitate; add one as features/schema/criteo.yaml has it"
        )
    return schema.sample


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{suffix}")


def _text(rows: Rows, labels_B: Bools, schema: Schema) -> bytes:
    """The rows as lines, columns in the schema's order."""
    columns = {schema.label: pl.Series(labels_B.view(np.uint8))}
    for name in schema.dense:
        columns[name] = pl.Series(pa.array(rows.dense[name], mask=rows.missing.get(name)))
    for name in schema.categorical:
        columns[name] = _hex(rows.words[name], rows.missing.get(name))
    text = BytesIO()
    pl.DataFrame({name: columns[name] for name in schema.names}).write_csv(
        text,
        include_header=False,
        separator=text_format(schema).separator,
        null_value=schema.format.null_tokens[0],
        quote_style="never",
    )
    return text.getvalue()


def _hex(words_B: Words, missing_B: Bools | None) -> pl.Series:
    """Words as eight lower-case hex digits, by look-up of two bytes at a time."""
    halves_B2 = np.stack([HEX[words_B >> np.uint32(16)], HEX[words_B & np.uint32(0xFFFF)]], axis=1)
    offsets = np.arange(0, 8 * len(words_B) + 1, 8, dtype=np.int32)
    present = (
        None if missing_B is None else pa.py_buffer(np.packbits(~missing_B, bitorder="little"))
    )
    return pl.Series(
        pa.StringArray.from_buffers(
            len(words_B), pa.py_buffer(offsets), pa.py_buffer(halves_B2), present
        )
    )
