"""The report's heat maps: a figure of data.json by column and day, as table cells whose colour is as deep as the figure is high."""

from dataclasses import dataclass
from typing import Any

STEPS = 20  # depths of colour
DEEPEST_DRIFT = 0.5  # the deepest: twice what is a large shift by custom


@dataclass(frozen=True)
class Cell:
    """Its text, and 0 .. 1: how deep its colour is."""

    text: str
    depth: float


@dataclass(frozen=True)
class HeatMap:
    """figure: the key in data.json; lines: column -> a cell a day."""

    figure: str
    days: list[int]
    lines: dict[str, list[Cell]]


def heat_maps(data: dict[str, Any]) -> dict[str, HeatMap]:
    """By figure; each with the columns that have something to show, and no map where no column has."""
    made = {
        figure: _heat_map(data, figure) for figure in ("drift", "unseen", "missing", "distinct")
    }
    return {figure: heat_map for figure, heat_map in made.items() if heat_map.lines}


def _heat_map(data: dict[str, Any], figure: str) -> HeatMap:
    lines = {}
    for column in data["columns"]:
        values = [day["columns"].get(column["name"], {}).get(figure) for day in data["days"]]
        # a column that is never missing has nothing to show; one that has not drifted has
        if any(value is not None and (value > 0 or figure == "drift") for value in values):
            lines[column["name"]] = [_cell(value, figure) for value in values]
    return HeatMap(figure, [day["day"] for day in data["days"]], lines)


def _cell(value: float | None, figure: str) -> Cell:
    if value is None:
        return Cell("–", 0)
    if figure == "distinct":
        return Cell(f"{value:,}", 0)
    if figure == "drift":
        return Cell(f"{value:.2f}", _depth(value / DEEPEST_DRIFT))
    return Cell(f"{100 * value:.0f}", _depth(value))


def _depth(share: float) -> float:
    return round(min(share, 1) * STEPS) / STEPS


def not_seen_for(vocabulary: dict[str, Any], days: tuple[int, ...]) -> dict[int, dict[str, int]]:
    """So many days -> feature -> values of its vocabulary that none of the last so many days had; no more days than were counted."""
    num_days = len(vocabulary["days"])
    return {
        wanted: {
            name: sum(counts[: num_days - wanted])
            for name, counts in vocabulary["last_seen"].items()
        }
        for wanted in days
        if wanted < num_days
    }
