"""The YAML file of an inferred schema."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.config.loading import MAX_YAML_BYTES, ConfigError, check, read_yaml
from common.config.yaml_text import flow
from common.files import replaced
from common.printable import printable
from features.infer.guess import Guess
from features.schema.schema import Schema

MAX_COMMENT_CHARS = 200


def write_schema(
    path: Path,
    values: dict[str, Any],
    expected: Schema,
    guesses: Sequence[Guess],
    head: Sequence[str],
    notes: Sequence[str],
) -> None:
    """Write a schema with comments, and read it back.

    Args:
        path: The file to write.
        values: The schema, as plain values.
        expected: The schema that these values make.
        guesses: What was seen of each column, in the order of its entries.
        head: The lines of the comment at the top.
        notes: What is unsure about more than one column, for a comment at the end.

    Raises:
        ConfigError: The schema is too large for a YAML file.
    """
    text = _text(values, guesses, head, notes)
    if len(text.encode()) > MAX_YAML_BYTES:
        text = _text(values, [Guess(one.name, one.entry, "") for one in guesses], head, notes)
    if len(text.encode()) > MAX_YAML_BYTES:
        raise ConfigError(
            f"{path}: the {len(guesses):,} columns need {len(text.encode()):,} bytes, a schema has "
            f"{MAX_YAML_BYTES:,} at most; remove columns from the log, or write the schema by hand"
        )
    with replaced(path) as scratch:
        scratch.write_text(text, encoding="utf-8")
        schema = check(Schema, read_yaml(scratch), path)
        if schema != expected:
            raise AssertionError(f"{path}: the written schema is not the inferred one")


def _text(
    values: dict[str, Any], guesses: Sequence[Guess], head: Sequence[str], notes: Sequence[str]
) -> str:
    lines = [f"# {_comment(line)}" for line in head]
    lines += [
        f"format: {flow(values['format'])}",
        "columns:          # every column, in file order",
    ]
    for guess in guesses:
        if guess.unsure:
            lines.append(f"  # unsure: {_comment(guess.unsure)}")
        seen = f"   # {_comment(guess.seen)}" if guess.seen else ""
        lines.append(f"  - {flow(guess.entry)}{seen}")
    if derived := values.get("derived"):
        lines += ["derived:          # more features, made of the columns above"]
        lines += [f"  - {flow(one)}" for one in derived]
    if days := values.get("days"):
        lines.append(f"days: {flow(days)}   # a day is a date of this column")
    lines += [f"# unsure: {_comment(note)}" for note in notes]
    return "\n".join(lines) + "\n"


def _comment(text: str) -> str:
    return printable(text)[:MAX_COMMENT_CHARS]
