"""The metrics of a click model, computed in float64 NumPy from rows in ascending order of score.

Labels are 0 or 1, scores are float32 click probabilities. Everything that depends on the order of
the scores is computed from sorted rows (training/evaluation/external_sort.py) in which equal scores
are always together, so no metric depends on the order of the rows or on the size of the memory.

With sample weights a row counts as often as its weight says: two rows of the weight 1 are one row
of the weight 2. Where this file says number of rows or of clicks, it is then the sum of their
weights.

Shapes: N rows, K distinct scores or groups of scores, F fields of ScoreGroups, R rounds of a
bootstrap.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.auc import half_pairs_won
from training.evaluation.external_sort import NUM_CELLS, Block, Ranking

Array = NDArray[np.float64]
Metrics = dict[str, float | int | None]

# For the logloss, scores are clipped to [LOGLOSS_EPS, 1 - LOGLOSS_EPS], as FuxiCTR does. A float32
# does not distinguish 1 - 1e-8 from 1.
LOGLOSS_EPS = 1e-7
ECE_BINS = 20
FINE_BINS = 500  # for the bootstrap and the curves
BOOTSTRAP_SEED = 1  # not a parameter: nobody should choose an interval by its seed
INTERVAL_PERCENTILES = (2.5, 97.5)  # a 95 % interval


class ScoreGroups(NamedTuple):
    """K groups of rows in ascending order of score.

    Attributes:
        rows: Number of rows of each group, (K,).
        clicks: Number of clicked rows of each group, (K,).
        score: Mean score of each group, (K,).
        loss_click: Mean of -ln(score) of each group in nats, the loss of a clicked row, (K,).
        loss_other: Mean of -ln(1 - score) of each group in nats, the loss of another row, (K,).
        unweighted_rows: Number of rows of each group, whatever their weights are, (K,).
        unweighted_clicks: Number of clicked rows of each group, likewise, (K,).
    """

    rows: Array
    clicks: Array
    score: Array
    loss_click: Array
    loss_other: Array
    unweighted_rows: Array
    unweighted_clicks: Array


class MetricSums:
    """The sums over rows from which their metrics are computed, collected in one pass.

    Attributes:
        num_rows: Number of rows that `add` receives in all.
        total_weight: The sum of their weights; num_rows if there are none.
        weight_so_far: The sum of the weights of the rows that `add` has received.
        clicks: Number of clicked rows.
        others: Number of other rows.
        correct: Number of rows on the right side of 0.5.
        half_pairs_won: The number of pairs of a clicked and another row in the right order, times
            two (ties count 1). Without weights it and the numbers above are Python integers, so
            they are exact for any number of rows.
        score: Sum of the scores.
        loss: Sum of the losses, in nats.
    """

    def __init__(self, num_rows: int, total_weight: float | None = None) -> None:
        """Prepare the sums of num_rows rows.

        Args:
            num_rows: The number of rows.
            total_weight: The sum of their sample weights; None if all are 1.
        """
        self.num_rows = num_rows
        self.is_weighted = total_weight is not None
        self.total_weight = num_rows if total_weight is None else total_weight
        self.weight_so_far: float = 0
        self.clicks: float = 0
        self.others: float = 0
        self.correct: float = 0
        self.half_pairs_won: float = 0
        self.score = 0.0
        self.loss = 0.0
        self._groups = {
            num_groups: np.zeros((len(ScoreGroups._fields), num_groups))
            for num_groups in (ECE_BINS, FINE_BINS)
        }

    def add(self, block: Block) -> None:
        """Add rows, all of which have higher scores than the rows added before."""
        if not len(block.rows):
            return
        starts_K = np.flatnonzero(np.append(True, block.score_bits[1:] != block.score_bits[:-1]))
        scores_K = block.score_bits[starts_K].view(np.float32).astype(np.float64)
        rows_K: NDArray[Any]
        clicks_K: NDArray[Any]
        others_K: NDArray[Any]
        counts_K = np.add.reduceat(block.rows, starts_K)
        clicked_counts_K = np.add.reduceat(block.rows * block.clicked, starts_K)
        if block.weights is None:
            rows_K, clicks_K, others_K = counts_K, clicked_counts_K, counts_K - clicked_counts_K
        else:
            clicks_K = np.add.reduceat(block.weights * block.clicked, starts_K)
            others_K = np.add.reduceat(block.weights * ~block.clicked, starts_K)
            rows_K = clicks_K + others_K
        clicks = clicks_K.sum().item()
        pairs_won = half_pairs_won(others_K, clicks_K).item()
        self.half_pairs_won += 2 * self.others * clicks + pairs_won
        self.correct += np.where(scores_K > 0.5, clicks_K, others_K).sum().item()
        clipped_K = np.clip(scores_K, LOGLOSS_EPS, 1 - LOGLOSS_EPS)
        loss_click_K, loss_other_K = -np.log(clipped_K), -np.log1p(-clipped_K)
        self.loss += float((clicks_K * loss_click_K + others_K * loss_other_K).sum())
        self.score += float((rows_K * scores_K).sum())
        self._add_to_groups(
            rows_K,
            np.stack(
                [
                    rows_K,
                    clicks_K,
                    rows_K * scores_K,
                    rows_K * loss_click_K,
                    rows_K * loss_other_K,
                    counts_K,
                    clicked_counts_K,
                ]
            ),
        )
        self.clicks += clicks
        self.others += others_K.sum().item()
        self.weight_so_far += rows_K.sum().item()

    def _add_to_groups(self, rows_K: NDArray[Any], sums_FK: Array) -> None:
        """Add the sums of each score to groups of about equally many rows.

        G groups of exactly equal size would end after N/G, 2N/G, ... rows. The rows of one score
        stay together: they go to the last group that they reach.
        """
        ends_K: NDArray[Any] = self.weight_so_far + np.cumsum(rows_K)
        for num_groups, sums_FG in self._groups.items():
            if self.is_weighted:
                last_K = np.ceil(ends_K / self.total_weight * num_groups)
                group_K = np.clip(last_K, 1, num_groups).astype(np.int64) - 1
            else:
                group_K = (ends_K * num_groups - 1) // self.num_rows
            firsts = np.flatnonzero(np.append(True, group_K[1:] != group_K[:-1]))
            sums_FG[:, group_K[firsts]] += np.add.reduceat(sums_FK, firsts, axis=1)

    def groups(self, num_groups: int) -> ScoreGroups:
        """Return the rows in groups of about equally many rows.

        Args:
            num_groups: The largest number of groups, ECE_BINS or FINE_BINS. If there are fewer
                distinct scores, each score is a group.
        """
        sums_FG = self._groups[num_groups]
        groups = ScoreGroups(*sums_FG[:, sums_FG[0] > 0])
        means = {
            name: getattr(groups, name) / groups.rows
            for name in ("score", "loss_click", "loss_other")
        }
        return groups._replace(**means)


def sums_of_subsets(ranking: Ranking, subsets: Sequence[NDArray[np.bool_]]) -> list[MetricSums]:
    """Compute the sums of several subsets of the sorted rows in one pass.

    Args:
        ranking: The sorted rows.
        subsets: For each subset a mask of the cells that belong to it, (NUM_CELLS,).

    Returns:
        The sums of each subset, in the same order.
    """
    weights = ranking.cell_weights
    sums_of = [
        MetricSums(
            int(ranking.cell_rows[subset].sum()),
            None if weights is None else float(weights[subset].sum()),
        )
        for subset in subsets
    ]
    for block in ranking.blocks():
        for subset, sums in zip(subsets, sums_of, strict=True):
            selected_K = subset[block.cells]
            sums.add(block if selected_K.all() else block.where(selected_K))
    return sums_of


def sums_of_all(ranking: Ranking) -> MetricSums:
    """Compute the sums of all sorted rows."""
    return sums_of_subsets(ranking, [np.ones(NUM_CELLS, bool)])[0]


def sums_of_rows(
    labels_N: NDArray[Any], scores_N: NDArray[Any], weights_N: NDArray[Any] | None = None
) -> MetricSums:
    """Compute the sums of rows that are in memory; there has to be at least one."""
    ranking = Ranking(directory=None)
    ranking.add(labels_N, scores_N, weights_N=weights_N)
    return sums_of_all(ranking)


def metrics_of_rows(
    labels_N: NDArray[Any], scores_N: NDArray[Any], weights_N: NDArray[Any] | None = None
) -> Metrics:
    """Compute the metrics of rows that are in memory; there has to be at least one.

    Args:
        labels_N: Labels 0 or 1, (N,).
        scores_N: Click probabilities, (N,); they are rounded to float32.
        weights_N: Sample weights, not all 0, (N,); None if all are 1.

    Returns:
        The metrics that `compute_metrics` returns.
    """
    return compute_metrics(sums_of_rows(labels_N, scores_N, weights_N))


def compute_metrics(sums: MetricSums) -> Metrics:
    """Compute the metrics of at least one row.

    Returns:
        A dictionary with the keys
        auc: the probability that a clicked row has a higher score than another row, ties counting
            one half. It is exact: the float64 nearest to a ratio of integers. None if the rows
            have one class only.
        logloss: mean binary cross-entropy in nats, of scores clipped to
            [LOGLOSS_EPS, 1 - LOGLOSS_EPS].
        normalized_entropy: the logloss divided by the entropy of the label rate of these rows (He
            et al. 2014, "Practical Lessons from Predicting Clicks on Ads at Facebook"). Always
            predicting the label rate has 1. None if the rows have one class only.
        ece: the expected calibration error, see `ece`.
        calibration_ratio: predicted clicks, the sum of the scores, divided by observed clicks
            ("calibration" in He et al. 2014). None if there is no click.
        accuracy: share of rows on the right side of 0.5; a score of exactly 0.5 predicts no click.
        num_rows, label_rate, mean_score: the number of rows, which no weight changes, and their
            mean label and score.
    """
    total = sums.clicks + sums.others
    label_rate = sums.clicks / total
    logloss = sums.loss / total
    base = entropy(label_rate)
    return {
        "auc": auc(sums),
        "logloss": logloss,
        "normalized_entropy": logloss / base if base else None,
        "ece": ece(sums.groups(ECE_BINS)),
        "calibration_ratio": sums.score / sums.clicks if sums.clicks else None,
        "accuracy": sums.correct / total,
        "num_rows": sums.num_rows,
        "label_rate": label_rate,
        "mean_score": sums.score / total,
    }


def skill_warnings(metrics_of_splits: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Describe each split on which the model is no better than a constant score.

    Args:
        metrics_of_splits: Split -> its metrics.

    Returns:
        One line for each split whose normalised entropy is 1 or more.
    """
    entropies = {
        split: metrics["normalized_entropy"] for split, metrics in metrics_of_splits.items()
    }
    return [
        f"the model is no better than a constant on the {split} rows: normalised entropy "
        f"{value:.4f}; always predicting their click rate has 1"
        for split, value in entropies.items()
        if value is not None and value >= 1
    ]


def auc(sums: MetricSums) -> float | None:
    """Return the exact AUC, or None if the rows have one class only."""
    num_pairs = sums.clicks * sums.others
    return sums.half_pairs_won / (2 * num_pairs) if num_pairs else None


def entropy(rate: float) -> float:
    """Return the logloss, in nats, of always predicting the label rate; 0 for a rate of 0 or 1."""
    return float(-sum(p * np.log(p) for p in (rate, 1 - rate) if p > 0))


def ece(groups: ScoreGroups) -> float:
    """Compute the expected calibration error.

    It is the mean, over rows, of |click rate - mean score| of the row's group. The groups have
    equally many rows (Nguyen & O'Connor 2015, "Posterior calibration and exploratory analysis for
    natural language processing models") rather than equal widths of score: nearly all click scores
    are small, and equal widths would put them into one or two bins.
    """
    return float((np.abs(groups.clicks - groups.rows * groups.score)).sum() / groups.rows.sum())


def bootstrap_intervals(sums: MetricSums, num_rounds: int, seed: int) -> Metrics:
    """Compute 95 % percentile bootstrap intervals of auc, logloss and calibration_ratio.

    A resample draws N of the N rows with replacement, which is a multinomial draw over the pairs of
    a score and a label. The rows are first pooled into FINE_BINS groups. This moves the AUC by
    about 1 / FINE_BINS^2 and makes the cost independent of N. Rows are drawn whatever their weights
    are; a row that is drawn has the mean weight of its group and label.

    Args:
        sums: The sums of at least one row.
        num_rounds: Number of resamples.
        seed: Seed of the draws.

    Returns:
        NAME_low and NAME_high of each of the three metrics, None if no resample defines it.
    """
    groups = sums.groups(FINE_BINS)
    cells_2K = np.concatenate(
        [groups.unweighted_clicks, groups.unweighted_rows - groups.unweighted_clicks]
    )
    num_rows = int(cells_2K.sum())
    drawn_R2K = (
        np.random.default_rng(seed)
        .multinomial(num_rows, cells_2K / num_rows, size=num_rounds)
        .astype(np.float64)
    )
    total_R: Array | int = num_rows
    if sums.is_weighted:
        weights_2K = np.concatenate([groups.clicks, groups.rows - groups.clicks])
        drawn_R2K *= weights_2K / np.maximum(cells_2K, 1)
        drawn_R2K = drawn_R2K[drawn_R2K.sum(axis=1) > 0]  # a resample may have weights 0 only
        total_R = drawn_R2K.sum(axis=1)
    clicks_RK, others_RK = np.split(drawn_R2K, 2, axis=1)
    clicks_R, others_R = clicks_RK.sum(axis=1), others_RK.sum(axis=1)
    half_pairs_won_R = half_pairs_won(others_RK, clicks_RK)
    has_both, has_click = clicks_R * others_R > 0, clicks_R > 0  # one class has no AUC
    drawn = {
        "auc": half_pairs_won_R[has_both] / (2 * clicks_R * others_R)[has_both],
        "logloss": (clicks_RK @ groups.loss_click + others_RK @ groups.loss_other) / total_R,
        "calibration_ratio": (
            ((clicks_RK + others_RK) @ groups.score)[has_click] / clicks_R[has_click]
        ),
    }
    intervals: Metrics = {}
    for name, values_R in drawn.items():
        low = high = None
        if len(values_R):
            low, high = np.percentile(values_R, INTERVAL_PERCENTILES).tolist()
        intervals[f"{name}_low"], intervals[f"{name}_high"] = low, high
    return intervals


def roc_curve(groups: ScoreGroups) -> tuple[Array, Array]:
    """Compute the ROC curve of rows of both classes.

    Returns:
        The false and the true positive rate, (K + 1,) each, from (0, 0) to (1, 1) as the threshold
        falls.
    """
    clicks, others = np.cumsum(groups.clicks[::-1]), np.cumsum((groups.rows - groups.clicks)[::-1])
    return np.append(0.0, others / others[-1]), np.append(0.0, clicks / clicks[-1])


def gain_curve(groups: ScoreGroups) -> tuple[Array, Array]:
    """Compute the cumulative gain of rows with at least one click.

    Returns:
        The share of rows, highest scores first, and the share of all clicks that these rows have,
        (K + 1,) each.
    """
    rows, clicks = np.cumsum(groups.rows[::-1]), np.cumsum(groups.clicks[::-1])
    return np.append(0.0, rows / rows[-1]), np.append(0.0, clicks / clicks[-1])
