"""The command `clickmill predict`: score raw logs with a bundle or a serving bundle alone.

It contains the schema, the vocabularies and the format of the log.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext, redirect_stdout
from functools import partial
from pathlib import Path

import polars as pl

from common.files import DataError, remove
from common.logs import get_logger
from common.parquet import ParquetWriter
from common.progress import Progress
from common.user_files import UserOutput, expand_home, user_output
from features.ingest.readers.blocks import NoRowsError
from features.ingest.readers.column_names import quoted
from features.ingest.readers.read_log import has_label, read_log
from features.ingest.readers.row_validation import ValidatedRows
from features.schema.schema import Schema, TextFormat, name_fault
from training.inference.input_logs import InputLog, Inputs, find_inputs
from training.inference.loaded_model import LoadedModel, load_model
from training.inference.score_writers import (
    FORMAT_OF_ENDING,
    Format,
    ScoreWriter,
    choose_format,
    open_writer,
)

log = get_logger("predict")

# The columns of the scores; FILE only where there may be several inputs.
FILE, LINE, SCORE = "file", "line", "score"
BAD_ROWS_SUFFIX = ".bad_rows.parquet"


def predict(
    model_dir: Path,
    inputs: Path | Sequence[Path],
    output: Path,
    *,
    ids: Sequence[str] = (),
    output_format: Format | None = None,
) -> None:
    """Score the rows of raw logs; memory does not grow with the logs.

    The scores have the columns line (uint64, from 1) and score (float32). If `inputs` are several,
    a folder or a pattern, a column `file` comes first. The columns `ids` come before the score.

    Malformed rows get no score. They are written, with their reasons, to a second file, whose name
    is that of the output with the suffix .bad_rows.parquet. It has the columns line, reason and
    raw (and file), and exists only if there are malformed rows. If the output is a pipe or a
    device, there is no second file, and only the first malformed row is reported.

    Args:
        model_dir: The bundle, or the serving bundle.
        inputs: The logs, with or without labels, plain or compressed (.gz): files, folders, glob
            patterns, pipes, or `-` for standard input.
        output: The file of scores to write, `.csv`, `.jsonl` or `.parquet`; `-` is standard output.
        ids: Columns of the logs that are copied to the scores. A log without a header can only
            have columns of the schema.
        output_format: The format of an output whose name has no ending.

    Raises:
        DataError: The model is damaged, a log cannot be read, or the output must not be written.
    """
    found = find_inputs([inputs] if isinstance(inputs, Path) else inputs)
    scores_output = user_output(output, "--output", found.paths)
    format_ = choose_format(scores_output, output_format)
    bad_output = _bad_rows_output(output, scores_output, found.paths)
    model = load_model(expand_home(model_dir))
    check_ids(ids, model.state.schema)
    # Scores on standard output leave no place for log lines there.
    lines_to = redirect_stdout(sys.stderr) if scores_output.is_stdout else nullcontext()
    with lines_to:
        run = _Run(model, found, list(ids), scores_output, format_, bad_output)
        with found.open() as logs:
            run.score_all(logs)


class _Run:
    """One execution of the command."""

    def __init__(
        self,
        model: LoadedModel,
        inputs: Inputs,
        ids: list[str],
        output: UserOutput,
        format_: Format,
        bad_output: UserOutput | None,
    ) -> None:
        self.model, self.inputs, self.ids = model, inputs, ids
        self.output, self.format, self.bad_output = output, format_, bad_output
        self.num_rows = self.num_bad_rows = 0
        self.first_bad_row = ""
        self.scores: ScoreWriter | None = None
        self.schema = pl.Schema()
        self.bad_rows: ParquetWriter | None = None

    def score_all(self, logs: list[InputLog]) -> None:
        """Score all logs, and report what was done."""
        if not any(one.num_bytes for one in logs):
            raise DataError(f"--input {logs[0].name}: the file is empty (0 bytes); fetch it again")
        num_bytes = sum(one.num_bytes for one in logs)
        bytes_before = 0
        kinds = set()
        with ExitStack() as files, Progress("predict", None, None) as progress:
            scores_file = files.enter_context(self.output.open())

            def begin(schema: pl.Schema) -> ScoreWriter:
                self.schema = schema
                return files.enter_context(
                    open_writer(scores_file, self.format, schema, self.model.version)
                )

            for one in logs:
                if not one.num_bytes:
                    log.warning(f"{one.name} is empty (0 bytes): no rows of it are scored")
                    continue
                rows_before = self.num_rows + self.num_bad_rows
                for kind, frame, parsed in self._pieces(one):
                    kinds.add(kind)
                    if self.scores is None:
                        self.scores = begin(frame.schema)
                    self._check_same_columns(frame.schema, one)
                    self.scores.write(frame)
                    self._write_bad_rows(parsed, one, files)
                    self.num_rows += frame.height
                    # The number of lines is not known before the end: estimate it from the bytes.
                    num_lines = progress.num_rows + parsed.num_lines
                    bytes_read = bytes_before + parsed.bytes_read
                    progress.total_rows = int(num_lines * num_bytes / max(bytes_read, 1))
                    progress.update(parsed.num_lines)
                bytes_before += one.num_bytes
                if self.num_rows + self.num_bad_rows == rows_before:
                    log.info(f"{one.name} has no rows")
            if self.scores is None:
                begin(self._schema_without_rows())
        self._report(kinds, len(logs))

    def _pieces(self, one: InputLog) -> Iterator[tuple[str, pl.DataFrame, ValidatedRows]]:
        """Yield the scores of a log piece by piece, with its kind and what was read."""
        schema = self.model.state.schema
        try:
            is_labelled = has_label(one.path, schema, one.partitions)
            if schema.label in self.ids and not is_labelled:
                raise DataError(f"--id {schema.label}: {one.name} has no label")
            is_first = True
            for parsed in read_log(
                one.path,
                schema.with_copied(self.ids),
                labelled=is_labelled,
                short_rows=self.model.short_rows,
                partitions=one.partitions,
            ):
                if is_first:
                    self._check_ids_are_found(parsed, one)
                is_first = False
                scores = self.model.score(
                    self.model.state.encode(parsed.rows),
                    partial(_name_line, one.name, parsed.line_numbers),
                )
                frame = pl.DataFrame({LINE: parsed.line_numbers}).with_columns(
                    *self._copied(parsed.rows), pl.Series(SCORE, scores, dtype=pl.Float32)
                )
                if self.inputs.are_several:
                    frame = frame.select(pl.lit(one.name).alias(FILE), pl.all())
                yield ("labelled" if is_labelled else "unlabelled"), frame, parsed
        except NoRowsError:
            return
        except DataError as error:  # the user does not know the copy of a pipe
            raise DataError(str(error).replace(str(one.path), one.name)) from None

    def _copied(self, rows: pl.DataFrame) -> list[pl.Series]:
        """Return the columns of `ids` as they are written."""
        return [self._as_written(rows[name]) for name in self.ids]

    def _as_written(self, column: pl.Series) -> pl.Series:
        schema = self.model.state.schema
        if column.name in schema.hex32:
            return column.map_elements(lambda word: f"{word:08x}", return_dtype=pl.String)
        if schema.format.kind == "json_lines" and column.name not in schema.used:
            return column.cast(pl.String)  # numbers and texts may alternate in the log
        return column

    def _check_ids_are_found(self, parsed: ValidatedRows, one: InputLog) -> None:
        """Refuse a JSON key that no row of the first piece has: its name must be a mistake."""
        schema, num_rows = self.model.state.schema, parsed.rows.height
        for name in self.ids:
            is_missing = num_rows and parsed.rows[name].null_count() == num_rows
            if schema.format.kind == "json_lines" and name not in schema.names and is_missing:
                raise DataError(
                    f"--id {name}: none of the first {num_rows:,} rows of {one.name} has this key"
                )

    def _check_same_columns(self, schema: pl.Schema, one: InputLog) -> None:
        for name, dtype in schema.items():
            if self.schema[name] != dtype:
                raise DataError(
                    f"--id {name}: {dtype} in {one.name}, but {self.schema[name]} in the files "
                    "before it; convert the column, or score the files one by one"
                )

    def _write_bad_rows(self, parsed: ValidatedRows, one: InputLog, files: ExitStack) -> None:
        bad_rows = parsed.bad_rows
        if bad_rows.is_empty():
            return
        if not self.num_bad_rows:
            first = bad_rows.row(0, named=True)
            self.first_bad_row = f"{one.name} line {first['line']:,}: {first['reason']}"
        self.num_bad_rows += bad_rows.height
        if self.bad_output is None:
            return
        if self.inputs.are_several:
            bad_rows = bad_rows.select(pl.lit(one.name).alias(FILE), pl.all())
        if self.bad_rows is None:
            file = files.enter_context(self.bad_output.open())
            self.bad_rows = files.enter_context(ParquetWriter(file, bad_rows.schema))
        self.bad_rows.write(bad_rows)

    def _schema_without_rows(self) -> pl.Schema:
        file = {FILE: pl.String()} if self.inputs.are_several else {}
        ids = dict.fromkeys(self.ids, pl.String())
        return pl.Schema({**file, LINE: pl.UInt64(), **ids, SCORE: pl.Float32()})

    def _report(self, kinds: set[str], num_files: int) -> None:
        kind = kinds.pop() + " " if len(kinds) == 1 else ""
        of_files = f" of {num_files:,} files" if num_files > 1 else ""
        log.info(
            f"{self.num_rows:,} {kind}rows{of_files} scored by model {self.model.version}: "
            f"{self.output.name}"
        )
        if self.num_bad_rows and self.bad_output:
            log.warning(
                f"{self.num_bad_rows:,} malformed rows have no score; see {self.bad_output.name}"
            )
        elif self.num_bad_rows:
            log.warning(
                f"{self.num_bad_rows:,} malformed rows have no score; the first: "
                f"{self.first_bad_row}. To get them all, write the scores to a file"
            )
        elif self.bad_output and self.bad_output.target:
            remove(self.bad_output.target)  # of an earlier run


def _name_line(log_name: str, line_numbers: pl.Series, k: int) -> str:
    return f"{log_name}: line {line_numbers[k]}"


def _bad_rows_output(
    output: Path, scores_output: UserOutput, inputs: list[Path]
) -> UserOutput | None:
    """Check the file of malformed rows as the output itself; None if the output is no file."""
    if scores_output.target is None:
        return None
    path = expand_home(output)
    has_ending = path.suffix.lower() in FORMAT_OF_ENDING
    path = path.with_name((path.stem if has_ending else path.name) + BAD_ROWS_SUFFIX)
    bad_output = user_output(path, "--output", inputs)
    if bad_output.target == scores_output.target:
        raise DataError(f"--output {output}: {path}, the file of malformed rows, is a link to it")
    return bad_output


def check_ids(ids: Sequence[str], schema: Schema) -> None:
    """Check the names of the columns that are to be copied.

    Raises:
        DataError: A name occurs twice, is that of a column of the scores or of lists, or cannot be
            found in a log without a header.
    """
    lists = [*(feature.name for feature in schema.list_features), *schema.weights]
    for k, name in enumerate(ids):
        if name in lists:
            raise DataError(f"--id {name}: it has lists; name a column with one value in each row")
        if name in ids[:k]:
            raise DataError(f"--id {name}: named twice")
        if fault := name_fault(name):
            raise DataError(f"--id {name!r}: {fault}")
        if name in (FILE, LINE, SCORE):
            raise DataError(f"--id {name}: the scores have a column of this name already")
        has_names = not isinstance(schema.format, TextFormat) or schema.format.header
        if name not in schema.names and not has_names:
            raise DataError(
                f"--id {name}: the log has no header, so the column must be in the model's schema: "
                f"{quoted(schema.names)}"
            )
