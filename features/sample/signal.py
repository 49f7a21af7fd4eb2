"""The planted signal of the sample log: the true click probability of every row, a function of what the row shows."""

from dataclasses import dataclass

import numpy as np

from features.sample.sample_schema import SampleLog
from features.sample.values import MISSING_WORD, Floats, Rows, Words, key, mix, unit
from features.schema.schema import Schema

EFFECT_RANKS = 32  # the effect of a value shrinks with its rank r: 1 / (1 + r / 32), so that little hangs on values too rare to learn
CURVED = 0.35  # a dense column's square beside its line
Z_LIMIT = 3.0  # a dense column's extremes say no more than three standard deviations do


@dataclass(frozen=True)
class Signal:
    """logit = bias + sum over the groups of scale x (sum of the group's terms - mean).

    The groups, whose standard deviations the schema's `signal` gives:
    - dense: w z + 0.35 v (z^2 - 1) / 2^(1/2), z = ln(1 + max(x, 0)) standardised, null as 0 (as the schema's transform makes it);
    - categorical: the effect of the value, null being one of them;
    - interactions: the dot product of the two columns' latent vectors of length 2, a dense column's being (z, z) / 2^(1/2).
    An effect, a weight or a latent coordinate is a hash of (seed, column, value), uniform with mean 0 and standard deviation 1; what
    belongs to a value is then shrunk by its rank (EFFECT_RANKS). Nothing depends on a latent variable that the row does not show, and
    a dot-product model can hold all of it.
    """

    schema: Schema
    sample: SampleLog
    seed: int
    z_mean: Floats  # (N,)
    z_scale: Floats  # (N,)
    means: Floats  # (3,) of the groups
    scales: Floats  # (3,)
    bias: float

    @classmethod
    def fitted(cls, schema: Schema, sample: SampleLog, seed: int, pilot: Rows) -> "Signal":
        """Standardise on pilot rows, then solve the bias so that their mean probability is the schema's label rate."""
        logs = [_logs(pilot, name) for name in schema.dense]
        mean_N, scale_N = (
            np.array([x.mean() for x in logs]),
            np.array([1 / (x.std() or 1) for x in logs]),
        )
        raw = cls(schema, sample, seed, mean_N, scale_N, np.zeros(3), np.ones(3), 0.0)
        terms = raw.terms(pilot)
        wanted = np.array(
            [sample.signal.dense, sample.signal.categorical, sample.signal.interactions]
        )
        spread = terms.std(axis=1)
        scales = np.divide(wanted, spread, out=np.zeros(3), where=spread > 0)
        centred = cls(schema, sample, seed, mean_N, scale_N, terms.mean(axis=1), scales, 0.0)
        logits = centred.logits(pilot)
        low, high = -50.0, 50.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (
                (middle, high)
                if sigmoid(logits + middle).mean() < sample.label_rate
                else (low, middle)
            )
        return cls(schema, sample, seed, mean_N, scale_N, centred.means, scales, (low + high) / 2)

    def logits(self, rows: Rows) -> Floats:
        """(B,)"""
        terms = self.terms(rows)
        return np.asarray(self.bias + self.scales @ (terms - self.means[:, None]))

    def terms(self, rows: Rows) -> Floats:
        """(3, B): the sum of the terms of each group."""
        paired = {name for pair in self.sample.signal.pairs for name in pair}
        latent: dict[str, tuple[Floats, Floats]] = {}
        num_rows = len(next(iter(rows.words.values())))
        dense_B, categorical_B, pairs_B = np.zeros((3, num_rows))
        for i, name in enumerate(self.schema.dense):
            z_B = ((_logs(rows, name) - self.z_mean[i]) * self.z_scale[i]).clip(-Z_LIMIT, Z_LIMIT)
            line, curve = _effects(
                np.array([key(self.seed, name, "line"), key(self.seed, name, "curve")])
            )
            dense_B += line * z_B + (CURVED * curve / np.sqrt(2)) * (z_B * z_B - 1)
            if name in paired:
                latent[name] = (z_B / np.sqrt(2),) * 2
        for name in self.schema.categorical:
            words_B, weights_B = _shown(rows, name)
            categorical_B += weights_B * _effects(words_B ^ key(self.seed, name, "effect"))
            if name in paired:
                latent[name] = tuple(
                    weights_B * _effects(words_B ^ key(self.seed, name, "latent", i))
                    for i in range(2)
                )  # type: ignore[assignment]
        for left, right in self.sample.signal.pairs:
            pairs_B += latent[left][0] * latent[right][0] + latent[left][1] * latent[right][1]
        return np.stack([dense_B, categorical_B, pairs_B])


def sigmoid(logits: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-logits)))


def _effects(words: Words) -> Floats:
    """Uniform on ±3^1/2."""
    return np.asarray(np.sqrt(3) * (2 * unit(mix(words)) - 1))


def _logs(rows: Rows, name: str) -> Floats:
    logs_B = np.log1p(np.maximum(rows.dense[name], 0))
    if name in rows.missing:
        logs_B[rows.missing[name]] = 0
    return logs_B


def _shown(rows: Rows, name: str) -> tuple[Words, Floats]:
    """A categorical column's words, null being one of them, and the shrinkage of their effects."""
    words_B, weights_B = rows.words[name], 1 / (1 + rows.ranks[name] * (1 / EFFECT_RANKS))
    if name in rows.missing:
        words_B = np.where(rows.missing[name], MISSING_WORD, words_B)
        weights_B[rows.missing[name]] = 1
    return words_B, weights_B
