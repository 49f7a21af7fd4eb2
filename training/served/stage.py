"""The command `clickmill served`: what was served, joined with the labels that came later."""

from collections.abc import Sequence
from datetime import date
from pathlib import Path

from common.artifact import MANIFEST, Artifact
from common.bundle_layout import MODEL
from common.config.loading import ConfigError
from common.config.params import Params
from common.files import DataError, json_text
from common.layout import ARTIFACTS, FEATURES, SERVING
from common.logs import get_logger
from common.user_files import UserOutput, expand_home, user_output
from features.schema.schema import load_schema
from training.inference.input_logs import find_inputs
from training.served.figures import ServedFigures
from training.served.known_models import KnownModels
from training.served.report import render_report
from training.served.request_files import find_request_files
from training.served.traffic import compare_traffic
from training.served.training_rows import TrainingRows

# Where bundles are, unless the user names them: those that were in production, and the last one.
MODELS = (ARTIFACTS / "models", MODEL, SERVING)
log = get_logger("served")


def examine_served(
    params: Params,
    root: Path,
    requests: Path | None,
    logs: Sequence[Path],
    key: str | None,
    models: Sequence[Path] = (),
    *,
    since: date | None = None,
    until: date | None = None,
    output: Path | None = None,
    json: Path | None = None,
) -> ServedFigures:
    """Compare served traffic with labels and with training rows, and log the warnings.

    Args:
        params: The parameters.
        root: The project folder.
        requests: The folder of the request log; None is that of params.yaml.
        logs: The logs with the labels: files, folders, patterns or pipes.
        key: The column of these logs that has the keys; None is that of params.yaml.
        models: Bundles and folders of them; none are those of the project.
        since: The first day of the request log to read, in UTC; None is its first one.
        until: The last day; None is its last one.
        output: The HTML report to write; None writes none.
        json: The file of the figures to write, as JSON; None writes none.

    Raises:
        ConfigError: Neither an argument nor params.yaml names the request log, or the key.
        DataError: There is no request log, a log cannot be read, or an output must not be written.
    """
    requests = requests or params.serve.request_log_dir(root)
    key = key or params.serve.log_key
    if requests is None:
        raise ConfigError(
            "no request log: name its folder, --requests DIR, or set serve.request_log"
        )
    if key is None:
        raise ConfigError(
            "no key: name the column by which served rows find their labels, --key NAME, or set "
            "serve.log_key"
        )
    report = user_output(output, "--output") if output else None
    values = user_output(json, "--json") if json else None
    requests = expand_home(requests)
    files, damaged = find_request_files(requests, since, until)
    if not files and not damaged:
        raise DataError(f"{requests}: no rows of the days that were asked for (--since, --until)")
    for path in map(expand_home, models):
        if not path.exists():
            raise DataError(f"--model {path}: no such bundle")
    known = KnownModels([expand_home(path) for path in models] or [root / one for one in MODELS])
    has_features = (root / FEATURES / MANIFEST).exists()
    training = TrainingRows(Artifact.open(root / FEATURES)) if has_features else None
    with find_inputs(list(logs)).open() as opened:
        figures = compare_traffic(
            files,
            damaged,
            opened,
            load_schema(params.data.schema_name),
            key,
            known,
            training,
            short_rows=params.ingest.short_rows,
            num_rounds=params.evaluate.bootstrap_rounds,
        )
    for line in figures.warnings:
        log.warning(line)
    if report:
        _write(report, render_report(figures))
    if values:
        _write(values, json_text(figures.model_dump(mode="json")))
    return figures


def _write(output: UserOutput, text: str) -> None:
    with output.open() as file:
        file.write(text.encode())
