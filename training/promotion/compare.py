"""A challenger against the champion on the same rows, the challenger's test rows, and whether it may take its place."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from common.bundle_layout import MODEL
from common.config.params import Params
from common.files import DataError, read_json, write_json
from common.logs import get_logger
from common.progress import Progress
from features.encode.stage import FEATURES
from training.evaluation import metrics
from training.evaluation.external_sort import NUM_CELLS, Ranking
from training.evaluation.stage import BOOTSTRAP_SEED, EVALUATION
from training.inference.bundle import Bundle, load_bundle
from training.inference.score import score
from training.promotion.checks import (
    Check,
    check_calibration,
    check_data,
    check_not_worse,
    check_skill,
)
from training.promotion.comparable import check_comparable
from training.promotion.evaluated_test_set import EvaluatedRows
from training.promotion.paired_bootstrap import Difference, Paired
from training.promotion.smoke_test import probe

log = get_logger("compare")

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
    """root/artifacts/model, once evaluated, against the bundle `champion` (None: there is none); root/artifacts/decision.json says it all.

    A champion that is not whole, or cannot be compared, keeps its place. Raises DataError for a challenger that is not whole, or was not
    evaluated on the test rows in artifacts/parquet.
    """
    challenger = load_bundle(root / MODEL)
    tested = EvaluatedRows.of(challenger.state.schema, params, root)
    figures = read_json(root / EVALUATION / "metrics.json")["test"]
    wrong = rescored(challenger, tested) or probe(challenger, root / MODEL, root)
    checks = [
        *check_data(read_json(root / FEATURES / "data.json")["blocks_promotion"]),
        check_skill(figures),
        *check_calibration(
            figures, pl.read_csv(root / EVALUATION / "plots/calibration.csv"), params.promote
        ),
        Check("probe", wrong is None, wrong or "a fresh process scores the same bits"),
    ]
    theirs: dict[str, Any] | None = None
    difference: dict[str, Difference] = {}
    if champion is not None:
        try:
            rival = load_bundle(champion)
            check_comparable(rival, tested)
        except DataError as error:
            checks.append(Check("comparison", False, str(error)))
        else:
            theirs, difference = against(rival, tested, figures["num_rows"], params, root)
            checks += [
                check_not_worse(name, one, params.promote.significance_level)
                for name, one in difference.items()
            ]
    decision = Decision(
        all(check.passed for check in checks),
        checks,
        {"version": challenger.version, **figures},
        theirs,
        difference,
    )
    for check in checks:
        log.info(f"{'passed' if check.passed else 'FAILED'}  {check.name}: {check.found}")
    write_json(root / DECISION, asdict(decision) | {"reasons": decision.reasons})
    return decision


def against(
    champion: Bundle, tested: EvaluatedRows, num_rows: int, params: Params, root: Path
) -> tuple[dict[str, Any], dict[str, Difference]]:
    """The champion's figures on the challenger's test rows, so many of them, and the challenger's differences to it."""
    ranking, paired = Ranking(root / EVALUATION), Paired()
    with Progress("compare", num_rows, root) as progress:
        for rows, ours in tested.pieces():
            labels_N, theirs_N = rows[tested.schema.label].to_numpy(), scores_of(champion, rows)
            ranking.add(labels_N, theirs_N)
            paired.add(labels_N, theirs_N, ours.to_numpy())
            progress.update(rows.height)
    sums = metrics.sums_of(ranking, [np.ones(NUM_CELLS, bool)])[0]
    figures = metrics.figures(sums) | metrics.interval(
        sums, params.evaluate.bootstrap_rounds, BOOTSTRAP_SEED
    )
    return {"version": champion.version, **figures}, paired.differences()


def rescored(challenger: Bundle, tested: EvaluatedRows) -> str | None:
    """What is wrong where the first raw test rows do not have the scores that they were evaluated with."""
    rows, evaluated = next(tested.pieces())
    apart_N = scores_of(challenger, rows).view(np.uint32) != evaluated.to_numpy().view(np.uint32)
    return (
        f"{apart_N.sum():,} of {rows.height:,} test rows do not have the score that they were evaluated with"
        if apart_N.any()
        else None
    )


def scores_of(bundle: Bundle, rows: pl.DataFrame) -> NDArray[np.float32]:
    """Of raw typed rows."""
    return score(bundle, bundle.state.transform(rows))
