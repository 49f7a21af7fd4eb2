"""Whether a champion can be held against a challenger: it reads the challenger's test rows, and does not know them."""

from pathlib import PurePosixPath

from common.files import DataError
from features.collect.stage import RAW, natural
from features.encode.stage import FEATURES
from features.ingest.readers.row_validation import typed_columns
from training.inference.bundle import Bundle
from training.promotion.evaluated_test_set import EvaluatedRows


def check_comparable(champion: Bundle, tested: EvaluatedRows) -> None:
    """Raises DataError where the champion needs columns that these rows do not have, or was trained on a log file that they stand in.

    Files are known by their bytes. Where both logs are one file nothing can be told: it is cut into days by rows, the last of which are
    tested. By folds every file is trained on and tested, so that a second model of the same files is not comparable.
    """
    needed, given = typed_columns(champion.state.schema), typed_columns(tested.schema)
    other = [name for name, dtype in needed.items() if given.get(name) != dtype]
    if other:
        raise DataError(
            f"model {champion.version} reads columns that the log does not have, or of another kind: {', '.join(other)[:500]}; "
            "was data.schema changed?"
        )
    files = _files(champion, RAW.name)
    if len(files) == len(tested.shards) == 1:
        return
    known = {champion.manifest.data[name]: name for name in _trained_on(champion, files)}
    for file in tested.files:
        if file.sha256 in known:
            raise DataError(
                f"model {champion.version} was trained on {known[file.sha256]}, which holds test rows: no fair comparison"
            )


def _trained_on(champion: Bundle, files: list[str]) -> list[str]:
    """Those of the raw log's files, in time order, that the champion was trained on rows of."""
    if len(files) == 1:
        return files
    num_days = len(_files(champion, f"{FEATURES.name}/days"))
    num_left_out = (
        len(files) - num_days
    )  # they held the rows of others; as it is not recorded which did, each of so many is taken
    days = [
        int(PurePosixPath(name).stem.removeprefix("day_"))
        for name in _files(champion, f"{FEATURES.name}/train")
    ]
    return [name for k in days for name in files[k : k + num_left_out + 1]]


def _files(champion: Bundle, folder: str) -> list[str]:
    """What the champion was made from, in natural order."""
    return sorted(
        (name for name in champion.manifest.data if name.startswith(f"{folder}/")), key=natural
    )
