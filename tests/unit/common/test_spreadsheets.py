"""Text that spreadsheets would execute is marked, and nothing else changes."""

import polars as pl
from polars.testing import assert_frame_equal

from common.spreadsheets import without_formulas


def test_formulas_are_marked_and_numbers_stay() -> None:
    formulas = [
        "=1+1",
        "+cmd|' /C calc'!A0",
        "-2+3",
        "@SUM(A1)",
        "\tx",
        "\r=1",
        "\n=1",
        "-",
        "+1-1",
    ]
    others = ["u17", "", "-5", "+3.5", "-1e9", "1=2", " =1", "'=1", ".5", "-.5"]
    frame = pl.DataFrame({"id": [*formulas, *others, None], "score": -0.5})
    expected = pl.DataFrame(
        {"id": [*(f"'{text}" for text in formulas), *others, None], "score": -0.5}
    )
    assert_frame_equal(without_formulas(frame), expected)
