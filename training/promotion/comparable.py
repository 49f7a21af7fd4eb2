"""The check that a champion can be compared with a challenger on the challenger's test rows."""

from pathlib import PurePosixPath

from common.config.loading import shorten
from common.files import DataError
from common.layout import FEATURES, RAW
from common.natural_order import natural_order_key
from features.ingest.readers.row_validation import typed_columns
from training.inference.bundle import Bundle
from training.promotion.evaluated_test_set import EvaluatedTestSet

MAX_DIGITS = 10  # of the number of a day


def check_comparable(champion: Bundle, test_set: EvaluatedTestSet) -> None:
    """Check that the champion can score the test rows and was not trained on their log files.

    Log files are compared by their hashes. There are two special cases:

    - If both logs are a single file, nothing can be decided: it is cut into days by rows, and the
      last of these rows are the test rows.
    - With folds, every file has training rows and test rows, so a second model of the same files
      is not comparable.

    Raises:
        DataError: The champion reads columns that the rows do not have, or was trained on a log
            file that contains test rows.
    """
    needed, given = typed_columns(champion.state.schema), typed_columns(test_set.schema)
    missing = [name for name, dtype in needed.items() if given.get(name) != dtype]
    if missing:
        raise DataError(
            f"model {champion.version} reads columns that the log does not have, or has with "
            f"another type: {', '.join(missing)[:500]}; was data.schema changed?"
        )
    names = _recorded_files(champion, RAW.name)
    if len(names) == len(test_set.shards) == 1:
        return
    trained_on = {champion.manifest.data[name]: name for name in _trained_on(champion, names)}
    for shard in test_set.files:
        if shard.sha256 in trained_on:
            raise DataError(
                f"model {champion.version} was trained on {trained_on[shard.sha256]}, which "
                "contains test rows, so the comparison would not be fair"
            )


def _trained_on(champion: Bundle, files: list[str]) -> list[str]:
    """Select the files of the raw log, in time order, that the champion may have been trained on.

    A file whose rows were all in other files has no day of its own. The manifest does not record
    which files these are, so for each training day all files are selected that it may be.
    """
    if len(files) == 1:
        return files
    num_without_day = len(files) - len(_recorded_files(champion, f"{FEATURES.name}/days"))
    days = [_day_of(champion, name) for name in _recorded_files(champion, f"{FEATURES.name}/train")]
    return [name for day in days for name in files[day : day + num_without_day + 1]]


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
