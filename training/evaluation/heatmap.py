"""The report's heat maps: one value of data.json by column and day, as table cells.

The colour of a cell is as deep as its value is high.
"""

from dataclasses import dataclass
from typing import Any

COLOUR_STEPS = 20
# The drift (PSI) with the deepest colour: twice what is usually called a large shift.
DEEPEST_DRIFT = 0.5


@dataclass(frozen=True)
class Cell:
    """A cell of a heat map.

    Attributes:
        text: What the cell shows.
        depth: How deep its colour is, between 0 and 1.
    """

    text: str
    depth: float


@dataclass(frozen=True)
class HeatMap:
    """A heat map of one value.

    Attributes:
        statistic: The key of the value in data.json.
        days: The days, in order.
        rows: Name of the column -> a cell for each day.
    """

    statistic: str
    days: list[int]
    rows: dict[str, list[Cell]]


def heat_maps(data: dict[str, Any]) -> dict[str, HeatMap]:
    """Make the heat maps of drift, unseen, missing and distinct values.

    Args:
        data: The contents of data.json.

    Returns:
        Statistic -> heat map. A map has only columns with something to show; a map without columns
        is left out.
    """
    maps = {
        statistic: _heat_map(data, statistic)
        for statistic in ("drift", "unseen", "missing", "distinct")
    }
    return {statistic: heat_map for statistic, heat_map in maps.items() if heat_map.rows}


def _heat_map(data: dict[str, Any], statistic: str) -> HeatMap:
    rows = {}
    for column in data["columns"]:
        values = [day["columns"].get(column["name"], {}).get(statistic) for day in data["days"]]
        # A column that is never missing is left out, but a column without drift is shown.
        if any(value is not None and (value > 0 or statistic == "drift") for value in values):
            rows[column["name"]] = [_cell(value, statistic) for value in values]
    return HeatMap(statistic, [day["day"] for day in data["days"]], rows)


def _cell(value: float | None, statistic: str) -> Cell:
    if value is None:
        return Cell("–", 0)
    if statistic == "distinct":
        return Cell(f"{value:,}", 0)
    if statistic == "drift":
        return Cell(f"{value:.2f}", _depth(value / DEEPEST_DRIFT))
    return Cell(f"{100 * value:.0f}", _depth(value))


def _depth(share: float) -> float:
    return round(min(share, 1) * COLOUR_STEPS) / COLOUR_STEPS


def values_not_seen(
    vocabulary: dict[str, Any], last_days: tuple[int, ...]
) -> dict[int, dict[str, int]]:
    """Count the values of each vocabulary that did not occur in the last days.

    Args:
        vocabulary: The key `vocabulary` of data.json.
        last_days: Numbers of last days. Those that are not below the number of days that were
            counted are left out.

    Returns:
        Number of last days -> feature -> number of values that none of these days had.
    """
    num_days = len(vocabulary["days"])
    return {
        wanted: {
            name: sum(counts[: num_days - wanted])
            for name, counts in vocabulary["last_seen"].items()
        }
        for wanted in last_days
        if wanted < num_days
    }
