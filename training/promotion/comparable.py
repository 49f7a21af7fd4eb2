"""The check that a champion can be compared with a challenger on the challenger's test rows."""

from pathlib import PurePosixPath

from common.config.loading import shorten
from common.files import DataError
from common.layout import FEATURES, RAW
from common.natural_order import natural_order_key
from features.collect.discovery import days_of
from features.ingest.readers.row_validation import typed_columns
from training.inference.bundle import Bundle
from training.promotion.evaluated_test_set import EvaluatedTestSet

MAX_DIGITS = 10  # of the number of a day


def check_comparable(champion: Bundle, test_set: EvaluatedTestSet) -> None:
    """Check that the champion can score the test rows and was not trained on their log files.

    Log files are compared by their hashes. There are three special cases:

    - If both schemas name the column of the day, a file may have several days, so the days are
      compared by their dates.
    - If both logs are a single file, nothing can be decided: it is cut into days by rows, and the
      last of these rows are the test rows.
    - With folds, every file has training rows and test rows, so a second model of the same files
      is not comparable.

    Raises:
        DataError: The champion reads columns that the rows do not have, or was trained on a log
            file, or on a day, that contains test rows.
    """
    needed, given = typed_columns(champion.state.schema), typed_columns(test_set.schema)
    missing = [name for name, dtype in needed.items() if given.get(name) != dtype]
    if missing:
        raise DataError(
            f"model {champion.version} reads columns that the log does not have, or has with "
            f"another type: {', '.join(missing)[:500]}; was data.schema changed?"
        )
    trained_days = champion.manifest.trained_days
    if test_set.schema.days and champion.state.schema.days and trained_days is not None:
        days = [day for day in test_set.test_days if day in trained_days]
        if days:
            raise _not_fair(champion, days[0])
        return
    names = _recorded_files(champion, RAW.name)
    if len(names) == len(test_set.shards) == 1:
        return
    trained_on = {champion.manifest.data[name]: name for name in _trained_on(champion, names)}
    for shard in test_set.files:
        if shard.sha256 in trained_on:
            raise _not_fair(champion, trained_on[shard.sha256])


def _not_fair(champion: Bundle, trained_on: str) -> DataError:
    return DataError(
        f"model {champion.version} was trained on {trained_on}, which contains test rows, so the "
        "comparison would not be fair"
    )


def _trained_on(champion: Bundle, files: list[str]) -> list[str]:
    """Select the files of the raw log, in time order, that the champion may have been trained on.

    A file or a day whose rows were all in other files has no day of its own. The manifest does not
    record which these are, so for each training day all files are selected that it may be of.
    """
    if len(files) == 1:
        return files
    files_of_days = _files_of_days(files)
    num_without_day = len(files_of_days) - len(_recorded_files(champion, f"{FEATURES.name}/days"))
    days = [_day_of(champion, name) for name in _recorded_files(champion, f"{FEATURES.name}/train")]
    return [
        name
        for day in days
        for of_day in files_of_days[day : day + num_without_day + 1]
        for name in of_day
    ]


def _files_of_days(files: list[str]) -> list[list[str]]:
    """Return the files of each day, in time order: several if folders name the day, else one."""
    names = {file.removeprefix(f"{RAW.name}/"): file for file in files}
    files_of_day: dict[str, list[str]] = {}
    for name, day in days_of(names).items():
        files_of_day.setdefault(day or name, []).append(names[name])
    return [files_of_day[day] for day in sorted(files_of_day, key=natural_order_key)]


def _day_of(champion: Bundle, name: str) -> int:
    number = PurePosixPath(name).stem.removeprefix("day_")
    if not (number.isascii() and number.isdigit() and len(number) < MAX_DIGITS):
        raise DataError(
            f"model {champion.version} was trained on {shorten(name)}, which is no day, as its"
            " bundle.json says in data; restore the bundle from where it was made"
        )
    return int(number)


def _recorded_files(champion: Bundle, folder: str) -> list[str]:
    """List the files of a folder that the champion was made from, in natural order."""
    names = (name for name in champion.manifest.data if name.startswith(f"{folder}/"))
    return sorted(names, key=natural_order_key)
