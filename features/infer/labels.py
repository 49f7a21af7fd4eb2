"""The choice of the label among the columns of a sample."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from common.config.loading import shorten
from common.files import DataError
from features.infer.names import label_rank
from features.infer.sampled_column import SampledColumn

# No click and click, in small letters.
PAIRS = (
    ("0", "1"),
    ("0.0", "1.0"),
    ("-1", "1"),
    ("-1.0", "1.0"),
    ("false", "true"),
    ("no", "yes"),
    ("n", "y"),
    ("f", "t"),
    ("negative", "positive"),
)
MAX_LISTED = 10  # candidates in a message


@dataclass(frozen=True)
class Label:
    """The chosen label.

    Attributes:
        name: Its column.
        entry: Its entry in the schema.
        unsure: What is unsure about it; None if nothing is.
        others: The other columns that could be the label.
        positive_share: The share of clicks in the sample.
    """

    name: str
    entry: dict[str, Any]
    unsure: str | None
    others: list[str]
    positive_share: float


def choose_label(columns: Sequence[SampledColumn], wanted: str | None, *, has_names: bool) -> Label:
    """Choose the label.

    Args:
        columns: The columns of the sample, with null tokens as nulls.
        wanted: The column that the user names; None to choose by values and name.
        has_names: Whether the log has names. If it has none, the first candidate is the label.

    Raises:
        DataError: No column or several could be the label, or the wanted one is none.
    """
    candidates = {
        column.name: pair
        for column in columns
        if not column.in_path and (pair := _pair_of(column)) is not None
    }
    by_name = {column.name: column for column in columns}
    unsure = None
    if wanted is not None:
        _check_wanted(by_name, candidates, wanted)
        name = wanted
    else:
        ranked = sorted(
            (rank, position, name)
            for position, name in enumerate(candidates)
            if (rank := label_rank(name)) is not None
        )
        two_valued = [name for name in candidates if by_name[name].num_distinct == 2]
        if ranked:
            name = ranked[0][-1]
        elif two_valued and (len(two_valued) == 1 or not has_names):
            name = two_valued[0]
            unsure = "no name says which column is the label"
        else:
            found = f"could be: {_listed(two_valued)}" if two_valued else "no column has two values"
            raise DataError(
                f"which column is the label cannot be seen ({found}); give --label COLUMN"
            )
        if by_name[name].num_distinct < 2:
            unsure = f"all sampled rows have the value {by_name[name].texts()[0]}"
    if by_name[name].values.null_count():
        unsure = f"{by_name[name].missing_share:.1%} missing: these are bad rows"
    entry, positive_share = _entry(by_name[name], candidates[name])
    others = [other for other in candidates if other != name and by_name[other].num_distinct == 2]
    return Label(name, entry, unsure, others, positive_share)


def _check_wanted(
    by_name: dict[str, SampledColumn], candidates: dict[str, tuple[str, str]], wanted: str
) -> None:
    if wanted not in by_name:
        raise DataError(f"--label {wanted}: no such column; there are {_listed([*by_name])}")
    if wanted not in candidates:
        column = by_name[wanted]
        if column.in_path:
            raise DataError(
                f"--label {wanted}: it is in the paths of the files; write it into the files"
            )
        values = "" if column.is_nested else _listed(column.present.unique().cast(pl.String).sort())
        raise DataError(
            f"--label {wanted}: 0 and 1, -1 and 1, true and false, or yes and no expected, "
            f"found {column.num_distinct:,} values ({values}); change the log, or write the schema "
            "by hand with the values under positive and negative"
        )


def _pair_of(column: SampledColumn) -> tuple[str, str] | None:
    """Return the two values of a label, no click first; None if the column cannot be one."""
    if column.is_nested or column.is_temporal or not 1 <= column.num_distinct <= 4:
        return None
    values = {text.lower() for text in column.texts().unique().to_list()}
    for pair in PAIRS:
        if values == {*pair}:
            return pair
    is_named = label_rank(column.name) is not None
    return next((pair for pair in PAIRS if is_named and values and values <= {*pair}), None)


def _entry(column: SampledColumn, pair: tuple[str, str]) -> tuple[dict[str, Any], float]:
    entry: dict[str, Any] = {"kind": "label", "names": [column.name]}
    texts = column.texts()
    share = int((texts.str.to_lowercase() == pair[1]).sum()) / len(texts)
    if column.fits("label") and pair[0] not in ("-1", "-1.0"):
        return entry, share
    negative, positive = (sorted(_spellings(texts, value)) for value in pair)
    if column.is_text or column.json_types is not None:
        # The other value of a pair, and other spellings, may be in the rest of the log.
        negative, positive = negative or [pair[0]], positive or [pair[1]]
    else:
        negative, positive = [pair[0].removesuffix(".0")], [pair[1].removesuffix(".0")]
    return entry | {"positive": positive, "negative": negative}, share


def _spellings(texts: pl.Series, value: str) -> list[str]:
    return [text for text in texts.unique().to_list() if text.lower() == value]


def _listed(values: Sequence[str] | pl.Series) -> str:
    shown = ", ".join(shorten(value) for value in list(values)[:MAX_LISTED])
    return shown + (", ..." if len(values) > MAX_LISTED else "")
