"""The meaning of column names: a label, a time, a category, an amount or a row number."""

import re

WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
# A label, the most likely name first.
LABELS = (
    "label",
    "click",
    "clicked",
    "clicks",
    "is_click",
    "is_clicked",
    "isclick",
    "clk",
    "target",
    "y",
    "conversion",
    "converted",
    "is_conversion",
    "conv",
    "bought",
    "purchase",
    "purchased",
    "buy",
    "is_buy",
    "installed",
    "response",
    "outcome",
)
LABEL_WORDS = {"label", "click", "clicked", "clk", "target", "conversion", "converted", "purchased"}
TIME_WORDS = {
    "at",
    "created",
    "date",
    "datetime",
    "day",
    "dt",
    "epoch",
    "hour",
    "time",
    "timestamp",
    "ts",
    "updated",
    "when",
}
TIME_ENDINGS = ("time", "date", "timestamp")
CATEGORY_WORDS = {
    "brand",
    "cat",
    "category",
    "class",
    "code",
    "group",
    "hash",
    "id",
    "ids",
    "key",
    "pos",
    "position",
    "postcode",
    "region",
    "segment",
    "type",
    "uid",
    "uuid",
    "version",
    "zip",
    "zipcode",
}
AMOUNT_WORDS = {
    "age",
    "amount",
    "cnt",
    "cost",
    "count",
    "counts",
    "days",
    "distance",
    "duration",
    "height",
    "length",
    "n",
    "num",
    "number",
    "price",
    "qty",
    "quantity",
    "score",
    "seconds",
    "size",
    "sum",
    "total",
    "views",
    "visits",
    "width",
}
# Names such as those of published click logs: C1 is a category, I1 an integer.
NUMBERED_CATEGORY = re.compile(r"[Cc](at)?_?[0-9]+")
NUMBERED_AMOUNT = re.compile(r"[Ii](nt)?_?[0-9]+")
# In Parquet, and in a CSV file that was read and written a second time.
INDEX_OF_PANDAS = re.compile(r"__index_level_[0-9]+__|Unnamed: [0-9]+")
ROW_NUMBERS = re.compile(r"(unnamed:? ?_?[0-9]*|index|row|row_?(id|number|num)|)", re.IGNORECASE)


def words_of(name: str) -> set[str]:
    """Return the words of a name in small letters: `userId` and `user_id` have the same ones."""
    return {word.lower() for word in WORD.findall(name)}


def label_rank(name: str) -> int | None:
    """Return how likely a column of this name is the label, 0 first; None if it does not say so."""
    lower = name.lower()
    if lower in LABELS:
        return LABELS.index(lower)
    return len(LABELS) if words_of(name) & LABEL_WORDS else None


def says_time(name: str) -> bool:
    """Return whether a name speaks of a point in time."""
    words = words_of(name)
    return bool(words & TIME_WORDS) or any(word.endswith(TIME_ENDINGS) for word in words)


def says_category(name: str) -> bool:
    """Return whether a name speaks of values that are only compared."""
    return bool(words_of(name) & CATEGORY_WORDS) or bool(NUMBERED_CATEGORY.fullmatch(name))


def says_amount(name: str) -> bool:
    """Return whether a name speaks of an amount."""
    return bool(words_of(name) & AMOUNT_WORDS) or bool(NUMBERED_AMOUNT.fullmatch(name))


def says_row_number(name: str) -> bool:
    """Return whether a name speaks of the number of a row, as the index of pandas does."""
    return ROW_NUMBERS.fullmatch(name) is not None


def is_index_of_pandas(name: str) -> bool:
    """Return whether a column of numbers with this name is an index that pandas has written."""
    return INDEX_OF_PANDAS.fullmatch(name) is not None
