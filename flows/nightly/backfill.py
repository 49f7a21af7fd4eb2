"""Finds the days of the log for which no nightly run took place."""

from pathlib import Path

from common.config.params import Params
from common.files import DataError
from common.natural_order import natural_order_key
from features.collect.stage import BUILT_IN, find_source
from flows.nightly.repository import NightlyRepository


def missed(params: Params, root: Path, first: str, last: str) -> list[str]:
    """Return the days from first to last that were never the newest of a nightly run.

    A day has the name of its log file, or of its folder.

    Raises:
        DataError: first or last is not a day of data.source, or first comes after last.
    """
    if params.data.source == BUILT_IN:
        raise DataError(
            f'data.source is "{BUILT_IN}", a single log without one file a day; '
            "backfill needs a folder or a glob of daily files"
        )
    every_day = params.data.model_copy(update={"until": None})
    names = find_source(every_day, root).discovery.days
    for name in (first, last):
        if name not in names:
            raise DataError(
                f"no log or day called {name!r} at {params.data.source!r}; "
                f"there are {names[0]} to {names[-1]}"
            )
    if natural_order_key(first) > natural_order_key(last):
        raise DataError(f"{first} comes after {last}; name the earlier one first")
    done = {run.until for run in NightlyRepository(root).runs()}
    asked = names[names.index(first) : names.index(last) + 1]
    return [name for name in asked if name not in done]
