"""The traffic that was served since the run before, joined with the labels of the new days.

It runs as `clickmill served` in a child process. Whatever happens to it, the nightly run goes on.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from common.config.loading import read_json_as
from common.config.params import Serve
from common.files import DataError
from common.layout import RAW
from common.printable import first_line
from features.collect.manifest import RawManifest
from flows.dvc_stages import run_child
from flows.nightly.bundles import MODELS
from flows.nightly.record import NightlyRun
from training.served.figures import ServedFigures

COMMAND = "served"
WITH_NEW_ROWS = ("new", "late", "delivered again")  # kinds of changes of the log


class Served(NamedTuple):
    """The result of the comparison of served traffic in a nightly run.

    Attributes:
        figures: The figures; None if there are none.
        warnings: The warnings, one line each.
    """

    figures: ServedFigures | None
    warnings: list[str]


NOTHING = Served(None, [])


def compare_served(
    clone: Path,
    repository: Path,
    params: Serve,
    base: NightlyRun | None,
    log_changes: Mapping[str, Sequence[str]],
    log: Callable[[str], None],
) -> Served:
    """Compare the request log since the run before with the new days of the log.

    The first run, for which all days are new, takes the newest day alone.

    Args:
        clone: The clone of the nightly run, after its stages.
        repository: The repository's directory, whose models were served.
        params: The section serve of params.yaml.
        base: The run whose artifacts this one began with.
        log_changes: Names of changed log files, by kind of change.
        log: Receives each line that the command prints.
    """
    requests = params.request_log_dir(repository)
    if requests is None or params.log_key is None:
        return NOTHING
    try:
        logs = _new_logs(clone / RAW, base, log_changes)
        if not logs:
            return NOTHING
        arguments = ["--requests", str(requests.resolve()), "--key", params.log_key]
        if (models := repository / MODELS).is_dir():
            arguments += ["--model", str(models.resolve())]
        if base:
            arguments += ["--since", base.started.date().isoformat()]
        for path in logs:
            arguments += ["--log", str(path.resolve())]
        with TemporaryDirectory(prefix="clickmill-") as directory:
            json = Path(directory) / "served.json"
            command = ["clickmill", COMMAND, *arguments, "--json", str(json)]
            run_child(COMMAND, command, clone, log)
            figures = read_json_as(ServedFigures, json, "run clickmill served by hand")
    except Exception as error:  # a run whose model is good is not lost for a report
        return Served(None, [f"served traffic was not compared: {first_line(error)}"])
    return Served(figures, [f"served traffic: {line}" for line in figures.warnings])


def _new_logs(
    raw: Path, base: NightlyRun | None, log_changes: Mapping[str, Sequence[str]]
) -> list[Path]:
    """Return the log files in artifacts/raw whose rows are new."""
    files = RawManifest.read(raw).files
    changed = {name for kind in WITH_NEW_ROWS for name in log_changes.get(kind, [])}
    if base is None and files:
        changed = {files[-1].day_name}
    paths = [raw / file.name for file in files if file.day_name in changed]
    if missing := [path for path in paths if not path.is_file()]:
        raise DataError(f"{missing[0]} not found; the next nightly run collects it again")
    return paths


def describe_served(figures: ServedFigures) -> str:
    """Return the figures of the version that gave the most answers in one line."""
    one = figures.main
    if one is None:
        return "no rows in the request log"
    share = one.joined_share
    parts = [
        f"{one.title}: {one.num_rows:,} rows, {'none' if share is None else f'{share:.1%}'} joined"
    ]
    if one.metrics:
        ratio = one.metrics.calibration_ratio
        parts.append(f"predicted / observed clicks {'none' if ratio is None else f'{ratio:.3f}'}")
        parts.append(f"logloss {one.metrics.logloss:.4f}")
    parts += [
        f"largest {name} {value.column} {value.value:.3g}"
        for name, value in (("drift", one.drift), ("skew", one.skew))
        if value
    ]
    return ", ".join(parts)
