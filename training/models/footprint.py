"""The footprint of a model: its size, and what one row costs, counted from its modules.

The figures are exact and depend on the model alone, so they can stand in files that must be the
same on every machine. Time and memory in use are measured by the benchmarks instead.

Shapes: F categorical features, D embedding dim, d dim of a table, V vectors of a row, W = V D.
"""

from dataclasses import dataclass
from functools import singledispatch

from torch import nn

from training.models.cross import CrossInteraction
from training.models.embedding_tables import Tables
from training.models.embeddings import Embeddings, Place
from training.models.interaction import DotInteraction
from training.models.mixed_dim import MixedDimTables, Projections
from training.models.quotient_remainder import QuotientRemainderTables


@dataclass(frozen=True)
class Footprint:
    """The size of a model, and what the forward pass of one row costs.

    A list counts as a list of one value, because its length differs from row to row.

    Attributes:
        parameters: Number of weights, without the mean and std of the dense features.
        table_parameters: Number of those that are in embedding tables.
        bytes: Bytes of all tensors that the bundle stores.
        macs: Multiply-adds of one row. They are the products of the linear layers, of the
            projections of `mixed_dim` and of the interaction, and the element-wise products of
            cross layers and of `quotient_remainder` with `mult`. What is only added, divided or
            compared is not counted: biases, standardisation, pooling and ReLU.
        bytes_per_row: Bytes of the embedding rows that are looked up for one row.
    """

    parameters: int
    table_parameters: int
    bytes: int
    macs: int
    bytes_per_row: int


def footprint_of(model: nn.Module) -> Footprint:
    """Count the footprint of a DLRM, or of a module that consists of several."""
    modules = list(model.modules())
    return Footprint(
        parameters=sum(map(num_parameters, modules)),
        table_parameters=sum(num_parameters(part) for part in modules if isinstance(part, Tables)),
        bytes=sum(tensor.nbytes for tensor in model.state_dict().values()),
        macs=sum(map(num_macs, modules)),
        bytes_per_row=sum(
            bytes_of_lookup(part) for part in modules if isinstance(part, Embeddings)
        ),
    )


def num_parameters(part: nn.Module) -> int:
    """Return the number of weights of a module, without those of the modules in it."""
    if isinstance(part, Tables):
        return part.num_parameters
    return sum(parameter.numel() for parameter in part.parameters(recurse=False))


@singledispatch
def num_macs(part: nn.Module) -> int:
    """Return the multiply-adds of one row in a module, without those of the modules in it."""
    return 0


@num_macs.register
def _(part: nn.Linear) -> int:
    return part.in_features * part.out_features


@num_macs.register
def _(part: DotInteraction) -> int:
    return part.num_pairs * part.embedding_dim


@num_macs.register
def _(part: CrossInteraction) -> int:
    """Count x_0 * (W x + b) + x of each layer; its matrices are linear layers."""
    return len(part.layers) * part.num_outputs


@num_macs.register
def _(part: MixedDimTables) -> int:
    """Count the product of a row of d and a matrix d x D of each feature that is projected."""
    num_products = 0
    for table in tables_of_features(part):
        group, number = part.place_of[table]
        projections = part.projections[group]
        if isinstance(projections, Projections):
            num_products += projections.weight[number].numel()
    return num_products


@num_macs.register
def _(part: QuotientRemainderTables) -> int:
    """Count the element-wise product of two rows of D of each feature that is composed."""
    if part.operation_name != "mult":
        return 0
    composed = [table for table in tables_of_features(part) if part.is_composed(table)]
    return sum(group_of(part, part.places(table)[0]).embedding_dim for table in composed)


def bytes_of_lookup(embeddings: Embeddings) -> int:
    """Return the bytes of the rows that are looked up for one row of the batch."""
    return sum(
        group_of(embeddings, place).bytes_of_row
        for table in tables_of_features(embeddings)
        for place in embeddings.places(table)
    )


def group_of(embeddings: Embeddings, place: Place) -> Tables:
    """Return the group of tables that a place is in."""
    tables = embeddings.tables[place.group]
    assert isinstance(tables, Tables)
    return tables


def tables_of_features(embeddings: Embeddings) -> list[int]:
    """Return the number of the table that each categorical feature reads.

    A feature that the model leaves out reads none, or one that is in no group.
    """
    if embeddings.inputs is not None:
        return [table for table in embeddings.inputs.tables if table is not None]
    return list(range(embeddings.num_tables))
