"""`clickmill schema`: guess the schema of a log, and check a schema against a whole log."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.config.loading import ConfigError
from common.config.loading import check as check_model
from common.config.params import Data, Params, load_params
from common.files import DataError, replaced
from common.layout import PARAMS
from common.printable import printable
from flows.cli.groups import make_app

if TYPE_CHECKING:  # imported when a command needs it
    from features.infer.check_log import LogSummary
    from features.infer.infer import Inferred
    from features.infer.log_files import LogFile

ROOT = Path()
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
MAX_COLUMNS = 60  # that are printed
MAX_FILES = 20
MAX_REASONS = 10

app = make_app("Guess the schema of a log, and check a schema against a whole log.")


@app.command(epilog="Example: clickmill schema infer logs --name shop --use")
def infer(
    path: Annotated[
        str, typer.Argument(help="The log: a file, a folder or a glob pattern, as data.source.")
    ],
    name: Annotated[
        str, typer.Option(help="The name of the schema: features/schema/NAME.yaml is written.")
    ],
    label: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="The label.", show_default="by its name and values"),
    ] = None,
    use: Annotated[
        bool, typer.Option("--use", help="Set data.source and data.schema in params.yaml.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the schema if it exists.")
    ] = False,
) -> None:
    """Write a schema from the first rows of a log, with comments on what was seen."""
    params = load_params()
    from features.infer.infer import find_bad_rows, infer_schema
    from features.infer.schema_file import write_schema
    from features.schema.schema import SCHEMAS, Schema, check_schema

    target = SCHEMAS / f"{name}.yaml"
    if not NAME.fullmatch(name):
        raise ConfigError(f"--name {name!r}: letters, digits, _ and - expected, such as shop")
    if os.path.lexists(target) and not force:
        raise ConfigError(f"--name {name}: {target} exists; give another name, or --force")
    files = source_of(params, path)
    inferred = infer_schema(files, label)
    num_rows, num_files = inferred.sample.num_rows, inferred.sample.num_files
    head = [
        f"Inferred by `clickmill schema infer` from {num_rows:,} rows of {num_files} of"
        f" {len(files):,} files.",
        "Read the lines with `unsure`, and correct what is wrong.",
    ]
    schema = check_schema(check_model(Schema, inferred.values, target), target)
    bad = find_bad_rows(inferred.files, schema, params.ingest.short_rows)
    write_schema(target, inferred.values, schema, inferred.guesses, head, inferred.notes)
    for line in _summary_of_inferred(inferred):
        typer.echo(line)
    for one in bad:
        typer.echo(
            f"{one.num_bad:,} of the first {one.num_rows:,} rows of {one.file} are bad rows; "
            f"{printable(one.first)}"
        )
    typer.echo(f"\nWritten: {target}")
    if use:
        _use(params, path, name)
        typer.echo(f"Set in params.yaml: data.source: {printable(path)}, data.schema: {name}")
        typer.echo("Next: clickmill schema check")
    else:
        typer.echo(f"Next: set data.source and data.schema: {name} in params.yaml")


@app.command(epilog="Example: clickmill schema check")
def check(
    path: Annotated[
        str | None,
        typer.Argument(
            help="The log: a file, a folder or a glob pattern.",
            show_default="data.source of params.yaml",
        ),
    ] = None,
    schema: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The schema.", show_default="data.schema of params.yaml"),
    ] = None,
) -> None:
    """Read a whole log and report bad rows and what its columns contain; write nothing."""
    params = load_params()
    from features.infer.check_log import check_log
    from features.schema.schema import load_schema

    loaded = load_schema(schema or params.data.schema_name)
    summary = check_log(source_of(params, path), loaded, params.ingest.short_rows)
    for line in _summary_of_check(summary):
        typer.echo(line)
    limit = params.ingest.max_bad_fraction
    if summary.bad_fraction > limit:
        typer.echo(
            f"\nToo many bad rows: {summary.bad_fraction:.2%}, at most {limit:.2%} are allowed "
            "(ingest.max_bad_fraction). Correct the schema or the log."
        )
        raise typer.Exit(1)
    typer.echo("\nNext: clickmill run")


def source_of(params: Params, path: str | None) -> "list[LogFile]":
    """Return the files of a log that is named as data.source is; None: of data.source itself.

    Raises:
        DataError: There is none, or it is the built-in sample.
    """
    from features.collect.stage import BUILT_IN
    from features.infer.log_files import find_log_files

    data = params.data
    if path is not None:
        values = data.model_dump(by_alias=True) | {"source": path, "until": None}
        data = Data.model_validate(values)
    if data.source == BUILT_IN:
        raise DataError(
            "data.source is the built-in sample, which needs no schema; name a log of your own"
        )
    return find_log_files(data, ROOT)


def _use(params: Params, path: str, name: str) -> None:
    """Set data.source and data.schema in params.yaml, and nothing else."""
    from common.config.set_values import with_values

    expected = params.model_dump(by_alias=True)
    expected["data"] |= {"source": path, "schema": name}
    text = with_values(PARAMS, {"data.source": path, "data.schema": name})
    with replaced(PARAMS) as scratch:
        scratch.write_text(text, encoding="utf-8")
        if load_params(scratch).model_dump(by_alias=True) != expected:
            raise ConfigError(
                f"params.yaml: data.source and data.schema cannot be set; set data.source: {path} "
                f"and data.schema: {name} by hand"
            )


def _summary_of_inferred(inferred: "Inferred") -> Iterator[str]:
    log_format = inferred.values["format"]
    details = ", ".join(f"{key} {value!r}" for key, value in log_format.items() if key != "kind")
    yield f"Format: {log_format['kind']}, {details}"
    yield ""
    rows = []
    for guess in inferred.guesses:
        entry = guess.entry
        transform = entry.get("transform")
        transform = transform["name"] if isinstance(transform, dict) else transform
        lists = "list" if "list" in entry else None
        kind = " ".join(filter(None, (entry["kind"], entry.get("parse"), lists, transform)))
        rows.append((guess.name, kind, guess.seen))
    yield from _table(("column", "kind", "what was seen"), rows)
    unsure = [f"{guess.name}: {guess.unsure}" for guess in inferred.guesses if guess.unsure]
    if inferred.label.others:
        others = ", ".join(inferred.label.others)
        unsure.append(f"{inferred.label.name}: the label; these could be it as well: {others}")
    if unsure := [*unsure, *inferred.notes]:
        yield "\nUnsure:"
        yield from (f"  {printable(one)}" for one in unsure[:MAX_COLUMNS])


def _summary_of_check(summary: "LogSummary") -> Iterator[str]:
    yield ""
    shown = summary.files
    if len(shown) > MAX_FILES:
        shown = sorted(shown, key=lambda file: -file.num_bad_rows)[:MAX_FILES]
    rows = [(file.name, f"{file.num_rows:,}", f"{file.num_bad_rows:,}") for file in shown]
    yield from _table(("file", "rows", "bad rows"), rows, right=(1, 2))
    if len(shown) < len(summary.files):
        yield f"... and {len(summary.files) - len(shown):,} files with no more bad rows"
    yield (
        f"\n{summary.num_rows:,} rows in {len(summary.files):,} files, {summary.num_bad_rows:,} "
        f"bad rows ({summary.bad_fraction:.2%}), label rate {summary.label_rate:.2%}"
    )
    yield _days_line(summary)
    if summary.reasons:
        yield "\nReasons of bad rows:"
        for reason, count in summary.reasons.most_common(MAX_REASONS):
            yield f"  {count:,} x {reason}; first: {printable(summary.examples[reason])}"
    yield ""
    columns = [
        (
            column.name,
            column.kind,
            f"{column.missing_share:.1%}",
            "over 1,000,000" if column.num_distinct is None else f"{column.num_distinct:,}",
            "" if column.low is None else str(column.low),
            "" if column.high is None else str(column.high),
        )
        for column in summary.columns.values()
    ]
    titles = ("column", "kind", "missing", "values", "least", "greatest")
    yield from _table(titles, columns, right=(2, 3))
    if lists := [*_rows_of_lists(summary)]:
        yield ""
        titles = ("lists", "shortest", "mean length", "longest", "max_length", "rows cut")
        yield from _table(titles, lists, right=(1, 2, 3, 4, 5))
    if warnings := [*summary.warnings()]:
        yield "\nWarnings:"
        yield from (f"  {printable(one)}" for one in warnings)


def _rows_of_lists(summary: "LogSummary") -> Iterator[tuple[str, ...]]:
    for column in summary.columns.values():
        if lists := column.lists:
            yield (
                column.name,
                f"{lists.shortest:,}",
                f"{lists.num_values / max(lists.num_lists, 1):.1f}",
                f"{lists.longest:,}",
                "" if lists.max_length is None else f"{lists.max_length:,}",
                f"{lists.num_cut:,}",
            )


def _days_line(summary: "LogSummary") -> str:
    if summary.days:
        first, last = min(summary.days), max(summary.days)
        fewest = min(summary.days, key=lambda day: (summary.days[day], day))
        return (
            f"{len(summary.days):,} days, {first} to {last}; the smallest is {fewest} with "
            f"{summary.days[fewest]:,} rows"
        )
    days = list(dict.fromkeys(file.day for file in summary.files))
    if days != [file.name for file in summary.files]:
        return f"{len(days):,} days by the folders, {days[0]} to {days[-1]}"
    if len(summary.files) > 1:
        return f"{len(summary.files):,} days: each file is one"
    return "one file, which is cut into data.days days by row count"


def _table(
    titles: tuple[str, ...], rows: Sequence[tuple[str, ...]], right: tuple[int, ...] = ()
) -> Iterator[str]:
    shown = [tuple(printable(field) for field in row) for row in rows[:MAX_COLUMNS]]
    widths = [max(map(len, column)) for column in zip(titles, *shown, strict=True)]
    for row in (titles, *shown):
        fields = [
            field.rjust(width) if i in right else field.ljust(width)
            for i, (field, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(fields).rstrip()
    if len(rows) > MAX_COLUMNS:
        yield f"... and {len(rows) - MAX_COLUMNS:,} more"
