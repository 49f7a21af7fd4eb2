"""Removes rows of embedding tables and units of MLPs, by how much the scores depend on them.

Sums are those of NumPy, whose order of additions does not depend on the number of threads.

Shapes: R rows of all tables of a group, F tables of a group, D embedding dim, U units of a hidden
layer, O outputs of the next layer.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from common.numbers import ceil_div
from training.compression.statistics import Activations, RowReads
from training.models.embedding_tables import EmbeddingTables
from training.models.mlp import MLP


class KeptRows(NamedTuple):
    """The rows of a group of tables that are kept.

    Attributes:
        is_kept: bool (R,).
        substitutes: The row of each table that takes the place of those that are left out, (F, D).
    """

    is_kept: Tensor
    substitutes: Tensor


def choose_rows(
    tables: EmbeddingTables, reads: RowReads, share: float, bytes_of_row: int
) -> KeptRows | None:
    """Choose the rows that the scores depend on least, and the means that take their place.

    A row is worth its norm times the square root of how often the training rows read it. A
    substitute is the mean of the rows of its table that are left out, weighted by how often they
    are read. The rows of unseen and of missing values are always kept.

    Args:
        tables: The tables.
        reads: How often their rows are read.
        share: The share of the rows to leave out, rounded down.
        bytes_of_row: The bytes of a stored row.

    Returns:
        The rows; None if all are kept, because the rows that would be left out take no more bytes
        than the index and the substitutes.
    """
    rows_RD, counts_R = tables.weight.detach(), reads.counts.double()
    norm_R = torch.linalg.vector_norm(rows_RD, dim=1, dtype=torch.float64)
    worth_R = norm_R * counts_R.sqrt()
    worth_R[reads.is_shared] = torch.inf
    num_left_out = min(int(share * tables.num_rows), int((~reads.is_shared).sum()))
    index_bytes = ceil_div(tables.num_rows, 8) + len(tables.spans) * bytes_of_row
    if num_left_out * bytes_of_row <= index_bytes:
        return None
    is_kept_R = torch.ones(tables.num_rows, dtype=torch.bool)
    is_kept_R[worth_R.argsort(stable=True)[:num_left_out]] = False
    substitutes = []
    for start, end in tables.spans:
        left_out_K = ~is_kept_R[start:end]
        rows_KD = rows_RD[start:end][left_out_K].double().numpy()
        weights_K = counts_R[start:end][left_out_K].numpy()
        mean_D = (rows_KD * weights_K[:, None]).sum(axis=0) / max(weights_K.sum(), 1)
        substitutes.append(torch.from_numpy(mean_D))
    return KeptRows(is_kept_R, torch.stack(substitutes).float())


def remove_units(mlp: MLP, activations: Sequence[Activations], share: float) -> None:
    """Remove units of the hidden layers of an MLP in place.

    The units of a layer that are removed are those with the smallest product of the spread of their
    activation and the norm of their outgoing weights. Their mean goes into the bias of the next
    layer, so what is lost is how they differ from it.

    Args:
        mlp: The MLP; its layers are replaced.
        activations: Those of each hidden layer.
        share: The share of each hidden layer, rounded down.
    """
    places = [k for k, layer in enumerate(mlp) if isinstance(layer, nn.Linear)]
    for (place, next_place), of_units in zip(pairwise(places), activations, strict=True):
        layer, following = mlp[place], mlp[next_place]
        assert isinstance(layer, nn.Linear)
        assert isinstance(following, nn.Linear)
        outgoing_OU = following.weight.detach().double()
        loss_U = torch.from_numpy(of_units.std) * outgoing_OU.norm(dim=0)
        is_kept_U = torch.ones(len(loss_U), dtype=torch.bool)
        is_kept_U[loss_U.argsort(stable=True)[: int(share * len(loss_U))]] = False
        mean_U = torch.from_numpy(of_units.mean).masked_fill(is_kept_U, 0)
        more_O = torch.from_numpy((outgoing_OU * mean_U).numpy().sum(axis=1))
        bias_O = following.bias.detach().double() + more_O
        mlp[place] = _layer(layer.weight.detach()[is_kept_U], layer.bias.detach()[is_kept_U])
        mlp[next_place] = _layer(following.weight.detach()[:, is_kept_U], bias_O.float())


def _layer(weight_OI: Tensor, bias_O: Tensor) -> nn.Linear:
    with torch.device("meta"):
        layer = nn.Linear(weight_OI.shape[1], weight_OI.shape[0])
    layer.weight = nn.Parameter(weight_OI.contiguous(), requires_grad=False)
    layer.bias = nn.Parameter(bias_O.contiguous(), requires_grad=False)
    return layer
