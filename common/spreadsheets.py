"""Text that spreadsheets take for a formula, and how it is written to CSV."""

import polars as pl

# A cell that begins with one of these characters may be executed as a formula.
FORMULA = r"^[=+\-@\t\r\n]"
NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"


def without_formulas(frame: pl.DataFrame) -> pl.DataFrame:
    """Put an apostrophe before each text that a spreadsheet would execute.

    Spreadsheets take what follows an apostrophe as text. Numbers stay as they are, also those in
    text columns.
    """
    return frame.with_columns(
        _without_formulas(name) for name, dtype in frame.schema.items() if dtype == pl.String
    )


def _without_formulas(name: str) -> pl.Expr:
    text = pl.col(name)
    is_formula = text.str.contains(FORMULA) & ~text.str.contains(NUMBER)
    return pl.when(is_formula).then(pl.concat_str(pl.lit("'"), text)).otherwise(text).alias(name)
