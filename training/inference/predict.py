"""The command `clickmill predict`: score a raw log with a bundle alone.

The bundle contains the schema, the vocabularies and the format of the log.
"""

from functools import partial
from pathlib import Path

import polars as pl

from common.bundle_layout import MODEL_VERSION_KEY
from common.files import DataError, remove, replaced
from common.logs import get_logger
from common.parquet import ParquetWriter
from common.progress import Progress
from features.ingest.readers.read_log import has_label, read_log
from features.ingest.readers.row_validation import BAD_ROW_DTYPES
from training.inference.bundle import load_bundle
from training.inference.score import score

log = get_logger("predict")

SCORES = pl.Schema({"line": pl.UInt64, "score": pl.Float32})
BAD_ROWS_SUFFIX = ".bad_rows.parquet"


def predict(model_dir: Path, input_path: Path, output_path: Path) -> None:
    """Score the rows of a raw log; memory does not grow with the log.

    Malformed rows get no score. They are written, with their reasons, to a second file, whose name
    is that of the output with the suffix .bad_rows.parquet. It has the columns line, reason and
    raw, and exists only if there are malformed rows.

    Args:
        model_dir: The bundle.
        input_path: The log, with or without labels, plain or compressed (.gz).
        output_path: The Parquet file of scores to write, with the columns line (uint64, from 1) and
            score (float32).

    Raises:
        DataError: The bundle is damaged, or the log cannot be read.
    """
    bundle = load_bundle(model_dir)
    if not input_path.is_file():
        raise DataError(f"--input {input_path}: no such file")
    if not output_path.parent.is_dir() or output_path.is_dir():
        raise DataError(f"--output {output_path}: a file in an existing folder expected")
    schema, short_rows = bundle.state.schema, bundle.manifest.params["ingest"]["short_rows"]
    has_labels = has_label(input_path, schema)
    bad_path = output_path.with_suffix(BAD_ROWS_SUFFIX)
    num_rows = num_bad_rows = 0
    with (
        replaced(output_path) as scratch,
        replaced(bad_path) as bad_scratch,
        Progress("predict", None, None) as progress,
    ):
        num_bytes = input_path.stat().st_size
        with (
            ParquetWriter(scratch, SCORES, metadata={MODEL_VERSION_KEY: bundle.version}) as writer,
            ParquetWriter(bad_scratch, pl.Schema(BAD_ROW_DTYPES)) as bad_writer,
        ):
            for parsed in read_log(input_path, schema, labelled=has_labels, short_rows=short_rows):
                scores = score(
                    bundle,
                    bundle.state.encode(parsed.rows),
                    partial(_name_line, input_path, parsed.line_numbers),
                )
                columns = {"line": parsed.line_numbers, "score": scores}
                writer.write(pl.DataFrame(columns, schema=SCORES))
                bad_writer.write(parsed.bad_rows)
                num_rows += parsed.rows.height
                num_bad_rows += parsed.bad_rows.height
                # The number of lines is not known before the end: estimate it from the bytes read.
                num_lines = progress.num_rows + parsed.num_lines
                progress.total_rows = int(num_lines * num_bytes / max(parsed.bytes_read, 1))
                progress.update(parsed.num_lines)
    kind = "labelled" if has_labels else "unlabelled"
    log.info(f"{num_rows:,} {kind} rows scored by model {bundle.version}: {output_path}")
    if num_bad_rows:
        log.warning(f"{num_bad_rows:,} malformed rows have no score; see {bad_path}")
    else:
        remove(bad_path)


def _name_line(path: Path, line_numbers: pl.Series, k: int) -> str:
    return f"{path}: line {line_numbers[k]}"
