"""A challenger against the champion on the same rows, the challenger's test rows, and whether it may take its place."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.build import FEATURES, split_days
from features.collect import RAW, natural
from features.days import read_days, split_rows
from features.files import DataError, read_json, write_json
from features.ingest import used_shards
from features.params import Params
from features.progress import Progress
from features.schema import Schema
from features.split import TEST
from training.bundle import MODEL, Bundle, load_bundle
from training.evaluation import metrics
from training.evaluation.evaluate import BOOTSTRAP_SEED, EVALUATION
from training.evaluation.ranking import NUM_CELLS, Ranking
from training.promotion.checks import Check, check_calibration, check_not_worse, check_skill
from training.promotion.paired import Difference, Paired
from training.promotion.probe import probe
from training.score import score

DECISION = Path("artifacts/decision.json")


@dataclass(frozen=True)
class Decision:
    """Figures are those of metrics.json, of the test rows. champion: null where there is none, or where it cannot be compared."""

    promote: bool
    checks: list[Check]
    challenger: dict[str, Any]
    champion: dict[str, Any] | None
    difference: dict[str, Difference]

    @property
    def reasons(self) -> list[str]:
        """Why the champion stays."""
        return [f"{check.name}: {check.found}" for check in self.checks if not check.passed]


def compare(params: Params, root: Path, champion: Path | None) -> Decision:
    """root/artifacts/model against the bundle `champion` (None: there is none), once evaluated; root/artifacts/decision.json says it all.

    Raises DataError for a challenger that is not whole, or that was not evaluated.
    """
    challenger = load_bundle(root / MODEL)
    figures = read_json(root / EVALUATION / "metrics.json")["test"]
    checks = [
        *(Check("data", False, line) for line in read_json(root / FEATURES / "data.json")["keeps"]),
        check_skill(figures),
        *check_calibration(figures, pl.read_csv(root / EVALUATION / "plots/calibration.csv"), params.promote),
    ]
    theirs: dict[str, Any] | None = None
    difference: dict[str, Difference] = {}
    if champion is not None:
        try:
            theirs, difference = against(load_bundle(champion), challenger.state.schema, params, root)
            checks += [check_not_worse(name, one, params.promote.level) for name, one in difference.items()]
        except DataError as error:
            checks.append(Check("comparison", False, str(error)))
    wrong = rescored(challenger, params, root) or probe(challenger, root / MODEL, root)
    checks.append(Check("probe", wrong is None, wrong or "a fresh process scores the same bits"))
    ours = {"version": challenger.version, **figures}
    decision = Decision(all(check.passed for check in checks), checks, ours, theirs, difference)
    for check in checks:
        print(f"compare   {'passed' if check.passed else 'FAILED'}  {check.name}: {check.found}", flush=True)
    write_json(root / DECISION, asdict(decision) | {"difference": {name: one._asdict() for name, one in difference.items()}})
    return decision


def against(champion: Bundle, schema: Schema, params: Params, root: Path) -> tuple[dict[str, Any], dict[str, Difference]]:
    """The champion's figures on the challenger's test rows, and the challenger's differences to it.

    Raises DataError where the champion cannot read these rows, or was trained on some of them.
    """
    ranking, paired = Ranking(root / EVALUATION), Paired()
    num_rows = read_json(root / EVALUATION / "metrics.json")["test"]["num_rows"]
    check_fair(champion, schema, params, root)
    with Progress("compare", num_rows, root) as progress:
        for rows, ours_N in scored_rows(schema, params, root):
            labels_N, theirs_N = _scores(champion, rows)
            ranking.add(labels_N, theirs_N)
            paired.add(labels_N, theirs_N, ours_N)
            progress.update(rows.height)
    sums = metrics.sums_of(ranking, [np.ones(NUM_CELLS, bool)])[0]
    figures = metrics.figures(sums) | metrics.interval(sums, params.evaluate.bootstrap_rounds, BOOTSTRAP_SEED)
    return {"version": champion.version, **figures}, paired.differences()


def scored_rows(schema: Schema, params: Params, root: Path) -> Iterator[tuple[pl.DataFrame, NDArray[np.float32]]]:
    """Raw typed test rows in pieces, in the order in which they were evaluated, and the challenger's scores.

    Raises DataError where other rows were evaluated.
    """
    days = read_days(used_shards(root), params.data.days, root)
    first = read_json(root / EVALUATION / "metrics.json")["valid"]["num_rows"]
    path = root / EVALUATION / "scores.parquet"
    for _, rows in split_rows(days, TEST, split_days(days, schema, params)):
        found = pl.scan_parquet(path).slice(first, rows.height).collect()
        first += rows.height
        if set(found["split"]) != {"test"} or found["label"].to_list() != rows[schema.label].to_list():
            raise DataError(f"{path} is not of the test rows in artifacts/parquet; run the evaluate stage again")
        yield rows, found["score"].to_numpy()


def check_fair(champion: Bundle, schema: Schema, params: Params, root: Path) -> None:
    """Raises DataError where the champion was trained on a log file that test rows are in: it would know the answers.

    Of a log of one file nothing can be told; it is cut into days by rows, the last of which are tested.
    """
    log = {name.removeprefix(f"{RAW.name}/"): sha256 for name, sha256 in champion.manifest.data.items() if name.startswith(f"{RAW.name}/")}
    trained = {int(Path(name).stem.removeprefix("day_")) for name in champion.manifest.data if f"{FEATURES.name}/train/" in name}
    known = {log[name]: name for k, name in enumerate(sorted(log, key=natural)) if k in trained}
    shards = used_shards(root)
    if len(shards) == 1:
        return
    days = read_days(shards, params.data.days, root)
    for k in {k for k, _ in split_rows(days, TEST, split_days(days, schema, params))}:
        if shards[k].sha256 in known:
            raise DataError(f"model {champion.version} was trained on {known[shards[k].sha256]}, which holds test rows: no fair comparison")


def rescored(challenger: Bundle, params: Params, root: Path) -> str | None:
    """What is wrong where the first raw test rows do not have the scores that they were evaluated with."""
    rows, evaluated_N = next(scored_rows(challenger.state.schema, params, root))
    apart = np.flatnonzero(_scores(challenger, rows)[1].view(np.uint32) != evaluated_N.view(np.uint32))
    return f"{len(apart):,} of {rows.height:,} test rows do not have the score that they were evaluated with" if len(apart) else None


def _scores(bundle: Bundle, rows: pl.DataFrame) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """(labels, scores) of raw typed rows."""
    try:
        frame = bundle.state.transform(rows)
    except pl.exceptions.PolarsError as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"model {bundle.version} cannot read today's rows ({reason}); was data.schema changed?") from None
    return frame[bundle.state.schema.label].to_numpy(), score(bundle, frame)
