"""The sample log: a log with Criteo's format and statistics, made from a seed.

Its clicks follow a planted signal, so the best possible metrics are known.
"""

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
from common.numbers import bounds_of_equal_parts, ceil_div
from common.parquet import ParquetWriter
from common.progress import Progress
from features.list_values import lists_of
from features.sample.optimum import OptimumMetrics
from features.sample.signal import Signal, sigmoid
from features.sample.values import Bools, DaySampler, Floats, Rows, ValueSampler, Words
from features.schema.sample_section import SampleLog
from features.schema.schema import Schema, text_format

# Rows that are drawn together, from a random generator seeded by (seed, day, number of the chunk).
# The bytes of the log depend on this number.
CHUNK_ROWS = 1 << 16
# The signal is fitted on rows that are not in the log, drawn from up to PILOT_DAYS of its days.
PILOT_ROWS = 1 << 16
PILOT_DAYS = 32
# The first part of a random generator's seed, after the log's own seed.
LOG_STREAM, PILOT_STREAM = 0, 1
# NumPy and Polars release Python's lock, so two threads help. More would wait for the one that
# writes.
NUM_THREADS = 2
TRUTH = pl.Schema({"probability": pl.Float64})
# The four hex digits of each 16-bit number, as the four bytes of a 32-bit integer.
HEX_DIGITS = np.frombuffer("".join(f"{word:04x}" for word in range(1 << 16)).encode(), np.uint32)


@dataclass(frozen=True)
class Chunk:
    """B rows of the log.

    Attributes:
        probabilities: Their true click probabilities, float64 (B).
        labels: The labels that are drawn from the probabilities, bool (B).
        text: The rows as lines of the log.
    """

    probabilities: Floats
    labels: Bools
    text: bytes


def write_sample(
    path: Path, num_rows: int, num_days: int, seed: int, schema: Schema, progress: Progress
) -> dict[str, Any]:
    """Write a sample log, its true click probabilities and its best possible metrics.

    The log is in time order, and its days have equal numbers of rows (the first ones may have one
    more). PATH.truth.parquet contains one column `probability` (float64), in the order of the rows.
    PATH.optimum.json contains the metrics (`OptimumMetrics.metrics`) of all rows and, as a list
    `days`, of each day. The bytes depend on the number of rows and days, the seed and the schema
    only. Each file is complete or absent.

    Args:
        path: The log to write.
        num_rows: The number of rows.
        num_days: The number of days.
        seed: The seed of all random numbers.
        schema: The schema of the log, with a section `sample`.
        progress: Receives the progress.

    Returns:
        The contents of PATH.optimum.json.

    Raises:
        ConfigError: A number is too small, or the schema has no section `sample`.
    """
    sample = _check_arguments(num_rows, num_days, seed, schema)
    format_ = text_format(schema)
    total = OptimumMetrics()
    metrics_of_days = []
    with ExitStack() as files:
        log = files.enter_context(files.enter_context(replaced(path)).open("wb"))
        truth_path = files.enter_context(replaced(_beside(path, "truth.parquet")))
        truth = files.enter_context(ParquetWriter(truth_path, TRUTH))
        if format_.header:
            log.write((format_.separator.join(schema.names) + "\n").encode())
        generator = _ChunkGenerator(schema, sample, seed, num_days)
        for day, (start, end) in enumerate(pairwise(bounds_of_equal_parts(num_rows, num_days))):
            optimum_of_day = OptimumMetrics()
            for chunk in generator.chunks(day, end - start):
                log.write(chunk.text)
                truth.write(pl.DataFrame([chunk.probabilities], schema=TRUTH))
                optimum_of_day.add(chunk.probabilities, chunk.labels)
                progress.update(len(chunk.labels))
            total.merge(optimum_of_day)
            metrics_of_days.append(optimum_of_day.metrics())
        optimum = {**total.metrics(), "days": metrics_of_days}
        write_json(_beside(path, "optimum.json"), optimum)
    return optimum


class _ChunkGenerator:
    """Generates the chunks of a log. A chunk depends on its day and number, not on the threads."""

    def __init__(self, schema: Schema, sample: SampleLog, seed: int, num_days: int) -> None:
        self.schema = schema
        self.seed = seed
        self.values = ValueSampler(schema, sample)
        days = range(0, num_days, ceil_div(num_days, PILOT_DAYS))
        pilot = [
            self.values.day(day).draw(PILOT_ROWS // len(days), self._random(PILOT_STREAM, day, 0))
            for day in days
        ]
        self.signal = Signal.fit(schema, sample, seed, Rows.concat(pilot))

    def chunks(self, day: int, num_rows: int) -> Iterator[Chunk]:
        """Yield the chunks of a day, with `num_rows` rows in all."""
        values = self.values.day(day)

        def make_chunk(number: int) -> Chunk:
            num_chunk_rows = min(CHUNK_ROWS, num_rows - number * CHUNK_ROWS)
            return self._chunk(values, num_chunk_rows, self._random(LOG_STREAM, day, number))

        return map_ahead(make_chunk, range(ceil_div(num_rows, CHUNK_ROWS)), NUM_THREADS)

    def _chunk(self, values: DaySampler, num_rows: int, random: np.random.Generator) -> Chunk:
        rows = values.draw(num_rows, random)
        probabilities_B = sigmoid(self.signal.logits(rows))
        labels_B = random.random(num_rows) < probabilities_B
        return Chunk(probabilities_B, labels_B, _as_lines(rows, labels_B, self.schema))

    def _random(self, stream: int, day: int, chunk: int) -> np.random.Generator:
        return np.random.Generator(np.random.SFC64([self.seed, stream, day, chunk]))


def _check_arguments(num_rows: int, num_days: int, seed: int, schema: Schema) -> SampleLog:
    for name, value, least in (("rows", num_rows, 1), ("days", num_days, 1), ("seed", seed, 0)):
        if value < least:
            raise ConfigError(f"sample: {name} must be at least {least}, found {value}")
    if schema.sample is None:
        raise ConfigError(
            "sample: this schema has no section `sample`, which says what to imitate; "
            "add one as features/schema/criteo.yaml has it"
        )
    return schema.sample


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{suffix}")


def _as_lines(rows: Rows, labels_B: Bools, schema: Schema) -> bytes:
    """Write rows as lines, with the columns in the order of the schema."""
    columns = {schema.label: pl.Series(labels_B.view(np.uint8))}
    for name in schema.dense:
        columns[name] = pl.Series(pa.array(rows.dense[name], mask=rows.missing.get(name)))
    for name in schema.categorical:
        columns[name] = _as_hex(rows.words[name], rows.missing.get(name))
    for feature in schema.list_features:
        assert feature.list is not None
        lists = lists_of(columns[feature.name], rows.lengths[feature.name])
        joined = lists.list.join(str(feature.list.separator))
        columns[feature.name] = joined.set(lists.list.len() == 0, None)
    text = BytesIO()
    pl.DataFrame({name: columns[name] for name in schema.names}).write_csv(
        text,
        include_header=False,
        separator=text_format(schema).separator,
        null_value=schema.format.null_tokens[0],
        quote_style="never",
    )
    return text.getvalue()


def _as_hex(words_B: Words, is_missing_B: Bools | None) -> pl.Series:
    """Write words as eight lower-case hex digits, looking up four digits at a time."""
    first_B, last_B = HEX_DIGITS[words_B >> np.uint32(16)], HEX_DIGITS[words_B & np.uint32(0xFFFF)]
    digits = pa.py_buffer(np.stack([first_B, last_B], axis=1))
    offsets = pa.py_buffer(np.arange(0, 8 * len(words_B) + 1, 8, dtype=np.int32))
    validity = None
    if is_missing_B is not None:
        validity = pa.py_buffer(np.packbits(~is_missing_B, bitorder="little"))
    return pl.Series(pa.StringArray.from_buffers(len(words_B), offsets, digits, validity))
