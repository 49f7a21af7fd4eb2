"""The inference of a schema from a log, and its check against the rows that were sampled."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast

import polars as pl

from common.files import DataError
from features.infer.guess import (
    Guess,
    as_categorical,
    describe,
    guess_column,
    is_hex,
    with_weights,
)
from features.infer.labels import Label, choose_label
from features.infer.log_files import LogFile, read_file
from features.infer.null_tokens import find_null_tokens
from features.infer.sample import LogSample, choose_files, columns_of_paths, read_sample
from features.infer.sampled_column import SampledColumn
from features.infer.times import times_of
from features.schema.schema import Schema

ONE_DAY = timedelta(days=1)
MIN_WEEKDAYS = timedelta(days=8)  # with fewer days, the last weekday is new to the model


@dataclass(frozen=True)
class Inferred:
    """A schema that was inferred.

    Attributes:
        values: The schema, as plain values.
        guesses: What each column is, in file order.
        label: The label.
        notes: What is unsure about more than one column.
        sample: The rows that it was inferred from.
        files: The files that these rows are from.
    """

    values: dict[str, Any]
    guesses: list[Guess]
    label: Label
    notes: list[str]
    sample: LogSample
    files: list[LogFile]


@dataclass(frozen=True)
class BadRows:
    """The bad rows at the beginning of a file.

    Attributes:
        file: The name of the file.
        num_rows: The number of rows that were read.
        num_bad: The number of bad ones.
        first: The line and the reason of the first of them.
    """

    file: str
    num_rows: int
    num_bad: int
    first: str


def infer_schema(log: Sequence[LogFile], label: str | None) -> Inferred:
    """Infer the schema of a log.

    Args:
        log: Its files, in time order.
        label: The column of the label; None to choose it.

    Raises:
        DataError: The files cannot be read, have no rows, no label or no features.
    """
    chosen_files = choose_files(log)
    with ExitStack() as stack:
        paths = [stack.enter_context(file.at_hand()) for file in chosen_files]
        sample = read_sample(paths, len(log))
    in_paths = columns_of_paths([file.partitions for file in log])
    names = {column.name for column in in_paths}
    columns = [*(one for one in sample.columns if one.name not in names), *in_paths]
    is_text = sample.log_format["kind"] == "text"
    tokens = find_null_tokens(columns, is_text=is_text)
    columns = [column.without_tokens(tokens) for column in columns]
    last_rows = {one.name: one.without_tokens(tokens) for one in sample.last_rows}
    log_format = sample.log_format | {"null_tokens": tokens}
    chosen = choose_label(columns, label, has_names=sample.has_names)
    is_hashed_log = any(is_hex(column, needs_letter=True) for column in columns)
    guesses = []
    for column in columns:
        if column.name == chosen.name:
            rate = f"{describe(column)}, {chosen.positive_share:.2%} clicks".replace("%", " %")
            guesses.append(Guess(column.name, chosen.entry, rate, chosen.unsure))
        else:
            guess = guess_column(
                column,
                log_format,
                is_hashed_log=is_hashed_log,
                is_whole=sample.is_whole or column.in_path,
            )
            guesses.append(guess)
    guesses = with_weights(_with_category(columns, guesses))
    _check_features(guesses)
    values: dict[str, Any] = {
        "format": log_format,
        "columns": [guess.entry for guess in guesses],
    }
    notes = _add_time_features(values, columns, last_rows, guesses, sample)
    return Inferred(values, guesses, chosen, notes, sample, chosen_files)


def find_bad_rows(files: Sequence[LogFile], schema: Schema, short_rows: str) -> list[BadRows]:
    """Read the first rows of the sampled files with the schema.

    Args:
        files: The sampled files.
        schema: The inferred schema.
        short_rows: As of `read_log`.

    Returns:
        The files that have bad rows there.
    """
    found = []
    for file in files:
        with file.at_hand() as path:
            piece = next(read_file(file, path, schema, short_rows), None)
        if piece is not None and piece.bad_rows.height:
            line, reason = piece.bad_rows.row(0)[:2]
            first = f"line {line}: {reason}"
            found.append(BadRows(file.name, piece.num_lines, piece.bad_rows.height, first))
    return found


def _with_category(columns: Sequence[SampledColumn], guesses: list[Guess]) -> list[Guess]:
    """Make a category of the dense column with the fewest values, if there is no category yet."""
    if any(guess.entry["kind"] == "categorical" for guess in guesses):
        return guesses
    by_name = {column.name: column for column in columns}
    dense = [guess for guess in guesses if guess.entry["kind"] == "dense"]
    if len(dense) < 2:
        return guesses
    fewest = min(dense, key=lambda guess: by_name[guess.name].num_distinct)
    changed = as_categorical(by_name[fewest.name], fewest)
    return [changed if changed and guess is fewest else guess for guess in guesses]


def _check_features(guesses: list[Guess]) -> None:
    used = [guess for guess in guesses if guess.entry["kind"] in ("dense", "categorical")]
    if len(used) < 2:
        ignored = "; ".join(
            f"{guess.name}: {guess.seen}" for guess in guesses if guess.entry["kind"] == "ignored"
        )
        raise DataError(
            f"two columns at least expected that a model can use, found {len(used)}"
            f"{f' (not used: {ignored[:500]})' if ignored else ''}; is it a log of clicks?"
        )


def _add_time_features(
    values: dict[str, Any],
    columns: Sequence[SampledColumn],
    last_rows: dict[str, SampledColumn],
    guesses: Sequence[Guess],
    sample: LogSample,
) -> list[str]:
    """Add `derived` and `days` if there is one time column, and return what is unsure."""
    entries = [guess.entry for guess in guesses if guess.entry["kind"] == "time"]
    in_files = {column.name for column in columns if not column.in_path}
    if len([one for one in entries if one["names"][0] in in_files]) == 1:
        entries = [one for one in entries if one["names"][0] in in_files]
    names = [entry["names"][0] for entry in entries]
    if not names:
        return []
    if len(names) > 1:
        return [
            f"several times ({', '.join(names)}): if one of them is that of the click, add days: "
            "{column: NAME}; then a day is a date, and validation and test rows are the last ones"
        ]
    (name,), (entry,) = names, entries
    column = next(column for column in columns if column.name == name)
    times = [times_of(column, entry["parse"]).drop_nulls()]
    if name in last_rows and last_rows[name].fits("time", entry["parse"]):
        times.append(times_of(last_rows[name], entry["parse"]).drop_nulls())
    together = pl.concat(times)
    first, last = cast("datetime", together.min()), cast("datetime", together.max())
    span = last - first
    taken = {column.name for column in columns}
    derived = []
    if together.dt.hour().n_unique() > 1:
        derived.append(_derived("hour", name, taken))
    if span >= MIN_WEEKDAYS:
        derived.append(_derived("weekday", name, taken))
    if derived:
        values["derived"] = derived
    if span > ONE_DAY and not column.values.null_count():
        values["days"] = {"column": name}
        return []
    if column.values.null_count():
        return [f"days: {{column: {name}}} would make rows without {name} bad rows"]
    if sample.is_whole:
        return []
    return [f"if the log spans several days: add days: {{column: {name}}}"]


def _derived(transform: str, column: str, taken: set[str]) -> dict[str, Any]:
    name = f"{column}_{transform}"
    while name in taken:
        name += "_"
    return {"name": name, "transform": transform, "of": [column], "policy": "vocabulary"}
