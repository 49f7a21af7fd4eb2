"""The decision whether a challenger replaces the champion.

`clickmill stage compare` runs it. The checks that decide are in training/promotion/checks.py.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel

from common.artifact import Artifact
from common.bundle_layout import MODEL
from common.config.loading import check_json, shorten
from common.config.params import Params
from common.files import DataError, write_json
from common.layout import DECISION, EVALUATION, FEATURES
from common.logs import get_logger
from common.progress import Progress
from training.evaluation import metrics
from training.evaluation.external_sort import Ranking
from training.inference.bundle import Bundle, load_bundle
from training.inference.score import score
from training.promotion.checks import (
    Check,
    calibration_checks,
    data_gate_checks,
    not_worse_check,
    skill_check,
)
from training.promotion.comparable import check_comparable
from training.promotion.evaluated_test_set import REMEDY, EvaluatedTestSet, EvaluationMetrics
from training.promotion.paired_bootstrap import Difference, PairedBootstrap
from training.promotion.smoke_test import smoke_test

BINS = pl.Schema({"mean_score": pl.Float64, "num_rows": pl.Int64})  # the columns of calibration.csv

log = get_logger("compare")


class DataChecks(BaseModel):
    """The part of data.json that the decision uses; its other keys are not read."""

    blocks_promotion: list[str]


@dataclass(frozen=True)
class Decision:
    """The decision on a challenger.

    Attributes:
        promote: Whether the challenger is promoted: it passed all checks.
        checks: The results of the checks.
        challenger: The challenger's version and its metrics on the test rows.
        champion: The champion's version and its metrics on the same rows. None if there is no
            champion, or if it cannot be compared.
        difference: Metric -> the challenger's minus the champion's.
    """

    promote: bool
    checks: list[Check]
    challenger: dict[str, Any]
    champion: dict[str, Any] | None
    difference: dict[str, Difference]

    @property
    def reasons(self) -> list[str]:
        """The checks that failed, a line each."""
        return [f"{check.name}: {check.message}" for check in self.checks if not check.passed]


@dataclass(frozen=True)
class Comparison:
    """The comparison of challenger and champion on the same rows.

    Attributes:
        champion: The champion's version and metrics.
        difference: Metric -> the challenger's minus the champion's.
    """

    champion: dict[str, Any]
    difference: dict[str, Difference]


def decide_promotion(params: Params, root: Path, champion_dir: Path | None) -> Decision:
    """Run all checks on root/artifacts/model, and write root/artifacts/decision.json.

    A champion that is damaged or cannot be compared stays in production: the check `comparison`
    fails.

    Args:
        params: The parameters of params.yaml.
        root: The project folder; the evaluate stage has been run.
        champion_dir: The champion's bundle, or None if there is no champion.

    Raises:
        DataError: The challenger's bundle is damaged, or was not evaluated on the test rows in
            artifacts/parquet.
    """
    challenger = load_bundle(root / MODEL)
    test_set = EvaluatedTestSet.open(challenger.state.schema, params, root)
    test_set.check_model(challenger.version)
    challenger_metrics = EvaluationMetrics.read(test_set.evaluation).test.model_dump()
    checks = _checks_of_challenger(challenger_metrics, test_set.evaluation, params, root)
    with ThreadPoolExecutor(1) as thread:
        # The fresh process takes seconds to start; the models are compared meanwhile.
        smoke_error = thread.submit(smoke_test, challenger, root / MODEL, root)
        comparison: Comparison | None = None
        comparison_checks: list[Check] = []
        if champion_dir is not None:
            num_rows = challenger_metrics["num_rows"]
            comparison, comparison_checks = _compare(champion_dir, test_set, num_rows, params, root)
        error = rescoring_error(challenger, test_set) or smoke_error.result()
    checks = [
        *checks,
        Check("smoke test", error is None, error or "a fresh process gives the same scores"),
        *comparison_checks,
    ]
    decision = Decision(
        promote=all(check.passed for check in checks),
        checks=checks,
        challenger={"version": challenger.version, **challenger_metrics},
        champion=comparison.champion if comparison else None,
        difference=comparison.difference if comparison else {},
    )
    for check in checks:
        log.info(f"{'passed' if check.passed else 'FAILED'}  {check.name}: {check.message}")
    write_json(root / DECISION, asdict(decision) | {"reasons": decision.reasons})
    return decision


def _checks_of_challenger(
    test_metrics: dict[str, Any], evaluation: Artifact, params: Params, root: Path
) -> list[Check]:
    """Run the checks that need neither a champion nor scores."""
    features = Artifact.open(root / FEATURES)
    path = features.folder / "data.json"
    data = check_json(
        DataChecks, features.read_json(path.name), path, "run the features stage again"
    )
    return [
        *data_gate_checks(data.blocks_promotion),
        skill_check(test_metrics),
        *calibration_checks(test_metrics, _read_bins(evaluation), params.promote),
    ]


def _read_bins(evaluation: Artifact) -> pl.DataFrame:
    """Read calibration.csv of the test rows."""
    path = evaluation.path("plots/calibration.csv")
    try:
        bins = pl.read_csv(path, glob=False).select(BINS.names()).cast(BINS)
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = shorten(str(error).partition("\n")[0])
        raise DataError(f"{path}: it cannot be read ({reason}); {REMEDY}") from None
    is_possible = pl.col("mean_score").is_between(0, 1) & (pl.col("num_rows") > 0)
    for row in bins.filter(~is_possible.fill_null(value=False)).rows():
        raise DataError(f"{path}: mean_score {row[0]} of {row[1]} rows is not possible; {REMEDY}")
    if bins.is_empty():
        raise DataError(f"{path}: there is no row; {REMEDY}")
    return bins


def _compare(
    champion_dir: Path, test_set: EvaluatedTestSet, num_rows: int, params: Params, root: Path
) -> tuple[Comparison | None, list[Check]]:
    """Compare with a champion, which may be damaged or not comparable; return the checks too."""
    try:
        champion = load_bundle(champion_dir)
        check_comparable(champion, test_set)
        comparison = compare_on_test_set(champion, test_set, num_rows, params, root)
    except DataError as error:
        return None, [Check("comparison", False, str(error))]
    level = params.promote.significance_level
    return comparison, [
        not_worse_check(name, difference, level)
        for name, difference in comparison.difference.items()
    ]


def compare_on_test_set(
    champion: Bundle, test_set: EvaluatedTestSet, num_rows: int, params: Params, root: Path
) -> Comparison:
    """Score the challenger's test rows with the champion, and compare the two.

    Args:
        champion: The champion.
        test_set: The challenger's test rows and scores.
        num_rows: Number of test rows.
        params: The parameters of params.yaml.
        root: The project folder.
    """
    ranking, bootstrap = Ranking(root / EVALUATION), PairedBootstrap()
    with Progress("compare", num_rows, root) as progress:
        for rows, challenger_scores in test_set.pieces():
            labels_N = rows[test_set.schema.label].to_numpy()
            weights_N = None
            if test_set.schema.sample_weight:
                weights_N = rows[test_set.schema.sample_weight].to_numpy()
            champion_N = score_typed_rows(champion, rows)
            ranking.add(labels_N, champion_N, weights_N=weights_N)
            bootstrap.add(labels_N, champion_N, challenger_scores.to_numpy(), weights_N)
            progress.update(rows.height)
    sums = metrics.sums_of_all(ranking)
    champion_metrics = metrics.compute_metrics(sums) | metrics.bootstrap_intervals(
        sums, params.evaluate.bootstrap_rounds, metrics.BOOTSTRAP_SEED
    )
    return Comparison({"version": champion.version, **champion_metrics}, bootstrap.differences())


def rescoring_error(challenger: Bundle, test_set: EvaluatedTestSet) -> str | None:
    """Encode and score the first test rows again.

    Returns:
        What is wrong, in one line, or None if they have the scores they were evaluated with, bit
        for bit.
    """
    rows, evaluated = next(test_set.pieces())
    scores_N = score_typed_rows(challenger, rows)
    num_different = int((scores_N.view(np.uint32) != evaluated.to_numpy().view(np.uint32)).sum())
    if num_different == 0:
        return None
    return (
        f"{num_different:,} of {rows.height:,} test rows do not have the score "
        "that they were evaluated with"
    )


def score_typed_rows(bundle: Bundle, rows: pl.DataFrame) -> NDArray[np.float32]:
    """Encode and score typed rows: float32 (N,)."""
    return score(bundle, bundle.state.encode(rows))
