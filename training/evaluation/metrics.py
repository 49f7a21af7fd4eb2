"""The figures a click model is judged by, in float64 NumPy. labels_N are 0/1, scores_N float32 probabilities; one entry a row.

Everything that depends on order comes from rows sorted by score (training/evaluation/external_sort.py), equal scores always together, so that
no figure depends on the order of the rows, or on how many of them fit into memory.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.evaluation.external_sort import NUM_CELLS, Block, Ranking

Array = NDArray[np.float64]
Metrics = dict[str, float | int | None]

LOGLOSS_EPS = 1e-7  # a score is taken as at least this far from 0 and 1, as in FuxiCTR: float32 cannot tell 1 - 1e-8 from 1
ECE_BINS = 20
FINE_BINS = 500  # of the bootstrap and the curves
INTERVAL = (2.5, 97.5)  # percentiles: a 95 % interval


class Pool(NamedTuple):
    """K groups of rows by ascending score; float64 arrays of shape (K,)."""

    rows: Array
    clicks: Array
    score: Array  # mean
    loss_click: Array  # mean of -ln(score) in the group, the loss of a clicked row
    loss_other: Array  # mean of -ln(1 - score)


class Sums:
    """What the figures of some rows are made from, gathered in one pass over them by ascending score."""

    def __init__(self, num_rows: int) -> None:
        """num_rows: how many there will be."""
        self.num_rows, self.rows_so_far, self.clicks, self.correct = num_rows, 0, 0, 0
        self.half_pairs_won = 0  # (clicked, other) pairs in the right order count 2, ties 1; a whole number, however many there are
        self.score, self.loss = 0.0, 0.0
        self.groups = {
            num_groups: np.zeros((len(Pool._fields), num_groups))
            for num_groups in (ECE_BINS, FINE_BINS)
        }

    def add(self, block: Block) -> None:
        """The next rows: all scores above those so far."""
        if not len(block.rows):
            return
        starts_K = np.flatnonzero(np.append(True, block.score_bits[1:] != block.score_bits[:-1]))
        scores_K = block.score_bits[starts_K].view(np.float32).astype(np.float64)
        rows_K = np.add.reduceat(block.rows, starts_K)
        clicks_K = np.add.reduceat(block.rows * block.clicked, starts_K)
        others_K = rows_K - clicks_K
        clicks, others_before = int(clicks_K.sum()), self.rows_so_far - self.clicks
        self.half_pairs_won += 2 * others_before * clicks + int(
            (clicks_K * (2 * np.cumsum(others_K) - others_K)).sum()
        )
        self.correct += int(np.where(scores_K > 0.5, clicks_K, others_K).sum())
        clipped_K = np.clip(scores_K, LOGLOSS_EPS, 1 - LOGLOSS_EPS)
        loss_click_K, loss_other_K = -np.log(clipped_K), -np.log1p(-clipped_K)
        self.loss += float((clicks_K * loss_click_K + others_K * loss_other_K).sum())
        self.score += float((rows_K * scores_K).sum())
        self._group(
            rows_K,
            np.stack(
                [rows_K, clicks_K, rows_K * scores_K, rows_K * loss_click_K, rows_K * loss_other_K]
            ),
        )
        self.clicks += clicks
        self.rows_so_far += int(rows_K.sum())

    def _group(self, rows_K: NDArray[np.int64], sums_5K: Array) -> None:
        """Groups of equally many rows: G of them would end after N/G, 2 N/G … rows, and equal scores go to the last group they reach."""
        ends_K = self.rows_so_far + np.cumsum(rows_K)
        for num_groups, sums_5G in self.groups.items():
            group_K = (ends_K * num_groups - 1) // self.num_rows
            firsts = np.flatnonzero(np.append(True, group_K[1:] != group_K[:-1]))
            sums_5G[:, group_K[firsts]] += np.add.reduceat(sums_5K, firsts, axis=1)

    def pool(self, num_groups: int) -> Pool:
        """At most so many groups (ECE_BINS or FINE_BINS) of about equally many rows; one for each distinct score if those are fewer."""
        rows, *sums = self.groups[num_groups][:, self.groups[num_groups][0] > 0]
        return Pool(rows, sums[0], *(values / rows for values in sums[1:]))


def sums_of(ranking: Ranking, views: Sequence[NDArray[np.bool_]]) -> list[Sums]:
    """The sums of several sets of rows in one pass. views: of each set the cells that are in it, (NUM_CELLS,)."""
    found = [Sums(int(ranking.cell_rows[view].sum())) for view in views]
    for block in ranking.blocks():
        for view, sums in zip(views, found, strict=True):
            here_K = view[block.cells]
            sums.add(block if here_K.all() else block.where(here_K))
    return found


def sums_of_rows(labels_N: NDArray[Any], scores_N: NDArray[Any]) -> Sums:
    """Of rows that are in memory, at least one."""
    ranking = Ranking(directory=None)
    ranking.add(labels_N, scores_N)
    return sums_of(ranking, [np.ones(NUM_CELLS, bool)])[0]


def summary(labels_N: NDArray[Any], scores_N: NDArray[Any]) -> Metrics:
    """The figures of rows in memory, at least one; scores are taken as float32."""
    return figures(sums_of_rows(labels_N, scores_N))


def figures(sums: Sums) -> Metrics:
    """auc, logloss, normalized_entropy, ece, calibration_ratio, accuracy, num_rows, label_rate, mean_score of at least one row.

    auc: the chance that a clicked row scores above another, ties counting one half: exact, the nearest float64 to a ratio of integers.
    logloss: mean binary cross-entropy in nats; scores are clipped to [LOGLOSS_EPS, 1 - LOGLOSS_EPS].
    normalized_entropy: logloss over the entropy of these rows' label rate (He et al. 2014); 1 is what a constant achieves.
    calibration_ratio: clicks predicted, the sum of the scores, over clicks observed (He et al. 2014, calibration).
    accuracy: at 0.5; a score of just 0.5 says no click.
    auc and normalized_entropy are None when there is one class only, calibration_ratio when there is no click.
    """
    rate, loss = sums.clicks / sums.num_rows, sums.loss / sums.num_rows
    base = entropy(rate)
    return {
        "auc": auc(sums),
        "logloss": loss,
        "normalized_entropy": loss / base if base else None,
        "ece": ece(sums.pool(ECE_BINS)),
        "calibration_ratio": sums.score / sums.clicks if sums.clicks else None,
        "accuracy": sums.correct / sums.num_rows,
        "num_rows": sums.num_rows,
        "label_rate": rate,
        "mean_score": sums.score / sums.num_rows,
    }


def without_skill(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each split (split -> figures) on which always saying the click rate would have done as well."""
    entropies = {split: figures["normalized_entropy"] for split, figures in found.items()}
    return [
        f"no better than a constant on the {split} rows: normalised entropy {value:.4f}, and always saying their click rate has 1"
        for split, value in entropies.items()
        if value is not None and value >= 1
    ]


def auc(sums: Sums) -> float | None:
    pairs = sums.clicks * (sums.num_rows - sums.clicks)
    return sums.half_pairs_won / (2 * pairs) if pairs else None


def entropy(rate: float) -> float:
    """Logloss, in nats, of always predicting the label rate; 0 for a rate of 0 or 1."""
    return float(-sum(p * np.log(p) for p in (rate, 1 - rate) if p > 0))


def ece(groups: Pool) -> float:
    """Expected calibration error: mean over rows of |label rate - mean score| of the row's group.

    Groups hold equally many rows (Nguyen & O'Connor 2015) and not equal widths of score: nearly all click scores are small, and
    equal widths would put them into one or two bins.
    """
    return float((np.abs(groups.clicks - groups.rows * groups.score)).sum() / groups.rows.sum())


def interval(sums: Sums, num_rounds: int, seed: int) -> Metrics:
    """95 % percentile bootstrap of auc, logloss and calibration_ratio: NAME_low, NAME_high; None where no draw has the figure.

    Drawing N rows with replacement is a multinomial draw over (score, label) cells. Rows are pooled into FINE_BINS groups
    first, which moves the AUC by about 1 / FINE_BINS^2 and makes the cost independent of N.
    """
    groups = sums.pool(FINE_BINS)
    cells_2K = np.concatenate([groups.clicks, groups.rows - groups.clicks])
    num_rows = int(cells_2K.sum())
    drawn_R2K = (
        np.random.default_rng(seed)
        .multinomial(num_rows, cells_2K / num_rows, size=num_rounds)
        .astype(np.float64)
    )
    clicks_RK, others_RK = np.split(drawn_R2K, 2, axis=1)
    clicks_R, others_R = clicks_RK.sum(axis=1), others_RK.sum(axis=1)
    below_RK = np.cumsum(others_RK, axis=1) - others_RK
    pairs_won_R = (clicks_RK * (below_RK + others_RK / 2)).sum(axis=1)
    both, clicked = clicks_R * others_R > 0, clicks_R > 0  # a draw of one class has no AUC
    drawn = {
        "auc": pairs_won_R[both] / (clicks_R * others_R)[both],
        "logloss": (clicks_RK @ groups.loss_click + others_RK @ groups.loss_other) / num_rows,
        "calibration_ratio": ((clicks_RK + others_RK) @ groups.score)[clicked] / clicks_R[clicked],
    }
    found: Metrics = {}
    for name, values_R in drawn.items():
        found[f"{name}_low"], found[f"{name}_high"] = (
            np.percentile(values_R, INTERVAL).tolist() if len(values_R) else (None, None)
        )
    return found


def roc(groups: Pool) -> tuple[Array, Array]:
    """(false positive rate, true positive rate), each (K + 1,), from (0, 0) to (1, 1), as the threshold falls; two classes needed."""
    clicks, others = np.cumsum(groups.clicks[::-1]), np.cumsum((groups.rows - groups.clicks)[::-1])
    return np.append(0.0, others / others[-1]), np.append(0.0, clicks / clicks[-1])


def gain(groups: Pool) -> tuple[Array, Array]:
    """(share of rows shown, share of clicks caught), each (K + 1,), rows taken by falling score; at least one click needed."""
    rows, clicks = np.cumsum(groups.rows[::-1]), np.cumsum(groups.clicks[::-1])
    return np.append(0.0, rows / rows[-1]), np.append(0.0, clicks / clicks[-1])
