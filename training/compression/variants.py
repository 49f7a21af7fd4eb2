"""The variants of a model that the report compares: each step of a compression alone, and others.

Setting single weights to 0 (magnitude pruning) is there for comparison only. Zeros are stored and
multiplied like other numbers, so it saves nothing; `clickmill compress` does not offer it.
"""

from typing import NamedTuple

import torch
from torch import nn

from training.compression.compress_model import (
    Statistics,
    Steps,
    compress_model,
    copy_without_tables,
)
from training.compression.statistics import mlps_of
from training.models.dlrm import DLRM
from training.models.ensemble import Ensemble, members_of

# The shares of the steps that are compared where the user chose none.
COMPARED_ROWS, COMPARED_UNITS = 0.5, 0.25
FORMAT_NAMES = {4: "int4 tables, int8 layers", 8: "int8", 16: "bf16", 32: "float32"}
ORIGINAL = "original"


class Zeros(NamedTuple):
    """Magnitude pruning of single weights.

    Attributes:
        share: The share of the weights of the MLPs that become 0: the smallest ones.
    """

    share: float


ZEROS = [Zeros(0.3), Zeros(0.5), Zeros(0.7)]


def variants_of(chosen: Steps) -> list[Steps | Zeros]:
    """Return the variants to compare, the chosen one among them."""
    variants = [
        Steps(16),
        Steps(8),
        Steps(4),
        Steps(32, rows=chosen.rows or COMPARED_ROWS),
        Steps(32, units=chosen.units or COMPARED_UNITS),
    ]
    return [*variants, *([] if chosen in variants else [chosen]), *ZEROS]


def name_of(variant: Steps | Zeros) -> str:
    """Describe a variant."""
    if isinstance(variant, Zeros):
        return f"{variant.share:.0%} of the single MLP weights are 0"
    parts = [] if variant.bits == 32 else [FORMAT_NAMES[variant.bits]]
    if variant.rows:
        parts.append(f"{variant.rows:.0%} of the rows left out")
    if variant.units:
        parts.append(f"{variant.units:.0%} of the units removed")
    return ", ".join(parts)


def make_variant(
    model: DLRM | Ensemble, variant: Steps | Zeros, statistics: Statistics
) -> DLRM | Ensemble:
    """Make a variant of a model, which is not recalibrated yet."""
    if isinstance(variant, Steps):
        return compress_model(model, variant, statistics)
    return with_zeros(model, variant.share)


@torch.no_grad()
def with_zeros(model: DLRM | Ensemble, share: float) -> DLRM | Ensemble:
    """Return a copy of which the smallest weights of the MLPs are 0, by one limit for all."""
    pruned = copy_without_tables(model)
    weights = [
        layer.weight
        for member in members_of(pruned)
        for mlp in mlps_of(member).values()
        for layer in mlp
        if isinstance(layer, nn.Linear)
    ]
    magnitudes = torch.cat([weight.abs().flatten() for weight in weights])
    num_zeros = int(share * len(magnitudes))
    if num_zeros:
        limit = magnitudes.kthvalue(num_zeros).values
        for weight in weights:
            weight.masked_fill_(weight.abs() <= limit, 0)
    return pruned
