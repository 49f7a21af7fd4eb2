"""Raw rows to scores with a bundle alone: the schema, the vocabularies and the dialect of the log are all inside it."""

from pathlib import Path

import polars as pl

from common.bundle_layout import MODEL_VERSION_KEY
from common.files import DataError, remove, replaced
from common.logs import get_logger
from common.parquet import Writer
from common.progress import Progress
from features.ingest.readers.read_log import has_label, read_log
from features.ingest.readers.row_validation import BAD_ROWS
from training.inference.bundle import load_bundle
from training.inference.score import score

log = get_logger("predict")

SCORES = pl.Schema({"line": pl.UInt64, "score": pl.Float32})
BAD_ROWS_SUFFIX = ".bad_rows.parquet"


def predict(model_dir: Path, input_path: Path, output_path: Path) -> None:
    """Score a raw log, labelled or not, plain or .gz, into output_path: Parquet of line (u64, from 1) and score (float32).

    Malformed rows get no score: they go to output_path with the suffix .bad_rows.parquet (line, reason, raw), which is there only
    if there are any. Memory is bounded whatever the log's size. Raises DataError for a bad bundle or a log that cannot be read.
    """
    bundle = load_bundle(model_dir)
    if not input_path.is_file():
        raise DataError(f"--input {input_path}: no such file")
    if not output_path.parent.is_dir() or output_path.is_dir():
        raise DataError(f"--output {output_path}: a file in an existing folder expected")
    schema, short_rows = bundle.state.schema, bundle.manifest.params["ingest"]["short_rows"]
    labelled = has_label(input_path, schema)
    bad_path = output_path.with_suffix(BAD_ROWS_SUFFIX)
    num_rows = num_bad_rows = 0
    with (
        replaced(output_path) as scratch,
        replaced(bad_path) as bad_scratch,
        Progress("predict", None, None) as progress,
    ):
        num_bytes = input_path.stat().st_size
        with (
            Writer(scratch, SCORES, about={MODEL_VERSION_KEY: bundle.version}) as writer,
            Writer(bad_scratch, pl.Schema(BAD_ROWS)) as bad_writer,
        ):
            for parsed in read_log(input_path, schema, labelled=labelled, short_rows=short_rows):
                scores = score(bundle, bundle.state.transform(parsed.rows))
                writer.write(pl.DataFrame({"line": parsed.lines, "score": scores}, schema=SCORES))
                bad_writer.write(parsed.bad)
                num_rows += parsed.rows.height
                num_bad_rows += parsed.bad.height
                progress.total_rows = int(
                    (progress.num_rows + parsed.num_lines) * num_bytes / max(parsed.read_bytes, 1)
                )
                progress.update(parsed.num_lines)
    kind = "labelled" if labelled else "unlabelled"
    log.info(f"{num_rows:,} {kind} rows scored by model {bundle.version}: {output_path}")
    if num_bad_rows:
        log.info(f"{num_bad_rows:,} malformed rows without a score, with reasons: {bad_path}")
    else:
        remove(bad_path)
