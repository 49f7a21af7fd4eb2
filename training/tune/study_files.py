"""The files of a study, below runs/tune. This module needs no torch."""

from pathlib import Path
from typing import Any

from common.checked_json import parse_checked_json
from common.config.loading import ConfigError, check_json, shorten
from common.config.tune import Tune
from common.files import DataError

STUDIES = Path("runs/tune")  # with a folder for each study, whose name is its key
LAST_STUDY = "last.json"  # which study `clickmill adopt` takes
# In the folder of a study.
SETTINGS, TRIALS, CONFIRMATIONS = "study.json", "trials.jsonl", "confirmations.jsonl"
LATENCY, SUMMARY, REPORT = "latency.json", "summary.json", "report.html"


def study_folder(root: Path, study: str | None) -> Path:
    """Return the folder of a study.

    Args:
        root: The project folder.
        study: The key of the study; None for the last one.

    Raises:
        ConfigError: There is none.
        DataError: The file that names the last one is damaged.
    """
    if study is None:
        path = root / STUDIES / LAST_STUDY
        if not path.exists():
            raise ConfigError(f"there is no study in {root / STUDIES}; run clickmill tune first")
        study = _read(path, "study")
    folder = root / STUDIES / str(study)
    if not (folder / SETTINGS).is_file():
        raise ConfigError(f"there is no study {shorten(study)} in {root / STUDIES}")
    return folder


def read_tune(folder: Path) -> Tune:
    """Return the search of a study.

    Raises:
        DataError: The file is damaged.
    """
    path = folder / SETTINGS
    return check_json(Tune, _read(path, "tune"), path, "run clickmill tune again")


def read_summary(folder: Path) -> dict[str, Any]:
    """Return the contents of summary.json.

    Raises:
        DataError: There is none, or it is damaged.
    """
    path = folder / SUMMARY
    values = parse_checked_json(path.read_bytes()) if path.is_file() else None
    if values is None:
        raise DataError(f"{path} is missing or damaged; run clickmill tune again")
    return values


def _read(path: Path, key: str) -> Any:
    """Return a value of a JSON file of the study."""
    values = parse_checked_json(path.read_bytes())
    if values is None or key not in values:
        raise DataError(f"{path} is damaged; run clickmill tune again")
    return values[key]
