"""The planted signal of the sample log: the true click probability of each row.

It depends only on what the row contains, so the best possible metrics of the log are known.
"""

from dataclasses import dataclass

import numpy as np

from features.sample.values import (
    MISSING_WORD,
    Floats,
    Rows,
    Words,
    hash_key,
    scatter,
    to_unit_interval,
)
from features.schema.sample_section import SampleLog
from features.schema.schema import Schema

# The effect of a value of rank r is multiplied by 1 / (1 + r / 32), so that little depends on
# values that are too rare to be learned.
RANK_SCALE = 32
CURVATURE = 0.35  # weight of a dense column's quadratic term, relative to its linear term
MAX_Z = 3.0  # dense values are limited to three standard deviations
MIN_LOGIT, MAX_LOGIT = -50.0, 50.0  # the bias is searched between these
NUM_BISECTIONS = 60


@dataclass(frozen=True)
class Signal:
    """The click probability of a row, as a sum of three groups of terms.

    logit = bias + sum over groups of scale * (sum of the group's terms - mean)

    - dense: w z + 0.35 v (z^2 - 1) / sqrt(2) for each dense column, where z is ln(1 + max(x, 0)),
      standardised, and 0 for a missing value, as in the schema's transform log1p;
    - categorical: the effect of each categorical column's value; "missing" is a value as well; of
      a list, the mean of the effects of its values, 0 if it is empty;
    - interactions: the dot product of the latent vectors (of length 2) of each pair's columns; the
      vector of a dense column is (z, z) / sqrt(2).

    Effects, weights w and v, and latent coordinates are hashes of (seed, column, value), uniform
    with mean 0 and standard deviation 1. Those of a value are then multiplied by a factor that
    falls with its rank (RANK_SCALE). A model with dot products can represent all of this.

    Attributes:
        schema: The schema of the log.
        sample: Its section `sample`.
        seed: The seed of the hashes.
        z_mean: The means of ln(1 + max(x, 0)) of the dense columns, float64 (N).
        z_scale: The reciprocals of its standard deviations, float64 (N).
        means: The means of the sums of terms, by group (3).
        scales: The scales of the groups (3), which give them the standard deviations of the schema.
        bias: The bias, which gives the log its label rate.
    """

    schema: Schema
    sample: SampleLog
    seed: int
    z_mean: Floats
    z_scale: Floats
    means: Floats
    scales: Floats
    bias: float

    @classmethod
    def fit(cls, schema: Schema, sample: SampleLog, seed: int, pilot: Rows) -> "Signal":
        """Fit means, scales and the bias on pilot rows.

        Args:
            schema: The schema of the log.
            sample: Its section `sample`.
            seed: The seed of the hashes.
            pilot: Rows that are drawn like those of the log.
        """
        logs = [_log1p(pilot, name) for name in schema.dense]
        z_mean_N = np.array([values.mean() for values in logs])
        z_scale_N = np.array([1 / (values.std() or 1) for values in logs])
        unscaled = cls(schema, sample, seed, z_mean_N, z_scale_N, np.zeros(3), np.ones(3), 0.0)
        terms_3B = unscaled.terms(pilot)
        strength = sample.signal
        wanted = np.array([strength.dense, strength.categorical, strength.interactions])
        spread = terms_3B.std(axis=1)
        scales = np.divide(wanted, spread, out=np.zeros(3), where=spread > 0)
        means = terms_3B.mean(axis=1)
        unbiased = cls(schema, sample, seed, z_mean_N, z_scale_N, means, scales, 0.0)
        bias = _solve_bias(unbiased.logits(pilot), sample.label_rate)
        return cls(schema, sample, seed, z_mean_N, z_scale_N, means, scales, bias)

    def logits(self, rows: Rows) -> Floats:
        """Return the logits of the click probabilities, float64 (B)."""
        terms_3B = self.terms(rows)
        return np.asarray(self.bias + self.scales @ (terms_3B - self.means[:, None]))

    def terms(self, rows: Rows) -> Floats:
        """Return the sums of the terms of each group, float64 (3, B)."""
        dense_B, categorical_B, interactions_B = np.zeros((3, rows.num_rows))
        paired = {name for pair in self.sample.signal.pairs for name in pair}
        latent: dict[str, tuple[Floats, Floats]] = {}
        for i, name in enumerate(self.schema.dense):
            z_B = ((_log1p(rows, name) - self.z_mean[i]) * self.z_scale[i]).clip(-MAX_Z, MAX_Z)
            keys = [hash_key(self.seed, name, "line"), hash_key(self.seed, name, "curve")]
            w, v = _effects(np.array(keys))
            dense_B += w * z_B + (CURVATURE * v / np.sqrt(2)) * (z_B * z_B - 1)
            if name in paired:
                coordinate_B = z_B / np.sqrt(2)
                latent[name] = coordinate_B, coordinate_B
        for name in self.schema.categorical:
            categorical_B += self._of_category(rows, name, "effect")
            if name in paired:
                first_B = self._of_category(rows, name, "latent", 0)
                latent[name] = first_B, self._of_category(rows, name, "latent", 1)
        for left, right in self.sample.signal.pairs:
            interactions_B += (
                latent[left][0] * latent[right][0] + latent[left][1] * latent[right][1]
            )
        return np.stack([dense_B, categorical_B, interactions_B])

    def _of_category(self, rows: Rows, name: str, *term: object) -> Floats:
        """Return a term of a categorical column, (B); of a list, the mean of its values' terms."""
        words, factors = _words_and_factors(rows, name)
        terms = factors * _effects(words ^ hash_key(self.seed, name, *term))
        if name not in rows.lengths:
            return np.asarray(terms)
        lengths_B = rows.lengths[name]
        row_of_value = np.repeat(np.arange(len(lengths_B)), lengths_B)
        sums_B = np.bincount(row_of_value, terms, len(lengths_B))
        return np.asarray(sums_B / np.maximum(lengths_B, 1))


def sigmoid(logits: Floats) -> Floats:
    """Return the probabilities that belong to logits."""
    return np.asarray(1 / (1 + np.exp(-logits)))


def _solve_bias(logits_B: Floats, label_rate: float) -> float:
    """Find by bisection the bias with which the mean probability is the label rate."""
    low, high = MIN_LOGIT, MAX_LOGIT
    for _ in range(NUM_BISECTIONS):
        middle = (low + high) / 2
        if sigmoid(logits_B + middle).mean() < label_rate:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _effects(words: Words) -> Floats:
    """Hash words to numbers that are uniform on [-sqrt(3), sqrt(3))."""
    return np.asarray(np.sqrt(3) * (2 * to_unit_interval(scatter(words)) - 1))


def _log1p(rows: Rows, name: str) -> Floats:
    """Return ln(1 + max(x, 0)) of a dense column, 0 where it is missing, float64 (B)."""
    logs_B = np.log1p(np.maximum(rows.dense[name], 0))
    if name in rows.missing:
        logs_B[rows.missing[name]] = 0
    return logs_B


def _words_and_factors(rows: Rows, name: str) -> tuple[Words, Floats]:
    """Return the words of a categorical column, and the factors of their effects by rank."""
    words_B = rows.words[name]
    factors_B = 1 / (1 + rows.ranks[name] * (1 / RANK_SCALE))
    if name in rows.missing:
        words_B = np.where(rows.missing[name], MISSING_WORD, words_B)
        factors_B[rows.missing[name]] = 1
    return words_B, factors_B
