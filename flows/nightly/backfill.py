"""Which nights were missed."""

from pathlib import Path

from common.config.params import Params
from common.files import DataError
from features.collect.stage import BUILT_IN, natural, source_files
from flows.nightly.record import nights


def missed(params: Params, root: Path, first: str, last: str) -> list[str]:
    """The log files from first to last, in order, that no night has had as its newest. Raises DataError for a name that is none."""
    if params.data.source == BUILT_IN:
        raise DataError(
            f'data.source is "{BUILT_IN}", one log without days of its own; nothing can be backfilled'
        )
    names = [
        path.name for path in source_files(params.data.model_copy(update={"until": None}), root)
    ]
    for name in (first, last):
        if name not in names:
            raise DataError(
                f"no log called {name!r} at {params.data.source!r}; there are {names[0]} to {names[-1]}"
            )
    if natural(first) > natural(last):
        raise DataError(f"{first} comes after {last}; name the earlier one first")
    had = {night.until for night in nights(root)}
    return [name for name in names[names.index(first) : names.index(last) + 1] if name not in had]
