"""A model whose weights are stored in fewer bits, for the export.

The formats are those of compressed bundles (training/models/number_formats.py), but nothing is left
out or recalibrated: the difference to the trained model is that of rounded numbers alone.
"""

import torch

from common.config.params import MlpFormat, TableFormat
from common.files import DataError
from training.compression.compress_model import copy_without_tables
from training.models.compressed_linear import compress_layers
from training.models.compressed_tables import CompressedTables
from training.models.dlrm import DLRM
from training.models.embedding_tables import EmbeddingTables
from training.models.ensemble import Ensemble, members_of
from training.models.number_formats import Format

FORMATS: dict[TableFormat, Format] = {"fp16": "fp16", "int8": 8, "int4": 4}


@torch.no_grad()
def with_formats(model: DLRM | Ensemble, tables: TableFormat, mlps: MlpFormat) -> DLRM | Ensemble:
    """Return a copy of a model with other formats; the model itself if both are fp32.

    Args:
        model: A model in eval mode, not compressed. It is not changed.
        tables: The format of the embedding tables.
        mlps: The format of the weights of the linear layers. The biases, and the last layer of the
            top MLP, which has one output, stay fp32.

    Raises:
        DataError: A number of a table is too large for its format.
    """
    if tables == mlps == "fp32":
        return model
    small = copy_without_tables(model)
    for member in members_of(small):
        if tables != "fp32":
            for k, group in enumerate(member.embeddings.tables):
                assert isinstance(group, EmbeddingTables)
                member.embeddings.tables[k] = _encoded(group, tables)
        if mlps == "bf16":
            compress_layers(member, 16)
    return small.eval().requires_grad_(False)


def _encoded(tables: EmbeddingTables, name: TableFormat) -> CompressedTables:
    cardinalities = [end - start for start, end in tables.spans]
    encoded = CompressedTables(cardinalities, tables.embedding_dim, bits=FORMATS[name])
    encoded.store(tables.weight)
    if fault := encoded.fault():
        raise DataError(
            f"the embedding tables cannot be stored as {name}: {fault}; set export.tables to int8"
            " or fp32 in params.yaml"
        )
    return encoded
