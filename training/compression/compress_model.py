"""Makes a compressed model from a trained one."""

import copy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from training.compression.remove import choose_rows, remove_units
from training.compression.statistics import Activations, RowReads, groups_of_tables, mlps_of
from training.inference.compressed_model import empty_tables
from training.models.compressed_linear import compress_layers
from training.models.compressed_tables import CompressedTables
from training.models.dlrm import DLRM
from training.models.embedding_tables import EmbeddingTables
from training.models.ensemble import Ensemble, members_of
from training.models.number_formats import CODE_DTYPE, Bits, codes_per_row, has_scale

BYTES_OF_SCALE = 2  # a bfloat16


class Steps(NamedTuple):
    """The steps of a compression.

    Attributes:
        bits: The format of the weights.
        rows: The share of the rows of embedding tables to leave out.
        units: The share of the units of hidden layers to remove.
    """

    bits: Bits
    rows: float = 0
    units: float = 0


@dataclass(frozen=True)
class Statistics:
    """How a model reads its tables, and how its hidden units behave, on the feature files.

    Attributes:
        reads: How often the training rows read each row of each group of tables; it is the same for
            all models of an ensemble.
        activations: For each model of an ensemble, the activations of the hidden layers of each
            MLP, over the validation rows.
    """

    reads: list[RowReads]
    activations: list[dict[str, list[Activations]]]


@torch.no_grad()
def compress_model(model: DLRM | Ensemble, steps: Steps, statistics: Statistics) -> DLRM | Ensemble:
    """Return a compressed copy of a model, which is not recalibrated yet.

    Args:
        model: A float32 model, or an ensemble, in eval mode. It is not changed.
        steps: What is done.
        statistics: What the choice of rows and units is based on.
    """
    small = copy_without_tables(model)
    for member, activations in zip(members_of(small), statistics.activations, strict=True):
        for name, mlp in mlps_of(member).items():
            remove_units(mlp, activations[name], steps.units)
        for k, reads in enumerate(statistics.reads):
            tables = member.embeddings.tables[k]
            assert isinstance(tables, EmbeddingTables)
            member.embeddings.tables[k] = compress_tables(tables, reads, steps)
        compress_layers(member, steps.bits)
    return small.eval().requires_grad_(False)


def compress_tables(tables: EmbeddingTables, reads: RowReads, steps: Steps) -> nn.Module:
    """Return compressed tables; the same ones if nothing is to be done."""
    kept = choose_rows(tables, reads, steps.rows, bytes_of_row(tables.embedding_dim, steps.bits))
    cardinalities = [end - start for start, end in tables.spans]
    num_kept = None if kept is None else int(kept.is_kept.sum())
    compressed = empty_tables(cardinalities, tables.embedding_dim, steps.bits, num_kept)
    if not isinstance(compressed, CompressedTables):
        return tables
    compressed.store(tables.weight, *(kept or ()))
    return compressed


def bytes_of_row(dim: int, bits: Bits) -> int:
    """Return the bytes that a row of `dim` numbers takes in a format."""
    of_codes = codes_per_row(dim, bits) * CODE_DTYPE[bits].itemsize
    return of_codes + (BYTES_OF_SCALE if has_scale(bits) else 0)


def kept_rows_of(model: DLRM) -> list[int | None]:
    """Return `Compression.kept_rows` of a compressed model."""
    return [
        tables.num_kept if isinstance(tables, CompressedTables) else None
        for tables in groups_of_tables(model)
    ]


def copy_without_tables(model: DLRM | Ensemble) -> DLRM | Ensemble:
    """Copy a model; the copy shares its embedding tables, which may be large."""
    tables = [tables for member in members_of(model) for tables in member.embeddings.tables]
    return copy.deepcopy(model, {id(each): each for each in tables})
