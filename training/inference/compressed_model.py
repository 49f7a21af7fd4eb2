"""The model of a compressed bundle, built as its manifest says and filled from its weights.

`clickmill compress` writes such bundles (training/compression/stage.py).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch

from common.bundle_layout import MANIFEST, version_from_sha256
from common.config.base import Fraction, NotNegative, Positive, Strict
from common.config.loading import ConfigError, as_data_error, one_line
from common.config.model import Model
from common.files import DataError
from features.encode.feature_state import FeatureState
from training.inference.weights_file import (
    RESTORE,
    Stored,
    check_finite,
    check_size,
    read_stored,
)
from training.models.compressed_linear import CompressedLinear, compress_layers
from training.models.compressed_tables import CompressedTables
from training.models.dlrm import DLRM
from training.models.embedding_tables import Tables
from training.models.factory import WITHOUT_ROWS, build_model, inputs_of, num_dense_weights
from training.models.number_formats import Bits
from training.tensor_files import map_tensors

DTYPE_NAMES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.int8: "I8",
    torch.uint8: "U8",
}


class Git(Strict):
    """The state of the code in git.

    Attributes:
        commit: The last commit that changed the code that decides the bytes; None if there is none.
        modified: Whether that code has changes that are not committed.
    """

    commit: str | None
    modified: bool


class Compression(Strict):
    """How a compressed bundle was made, and what its model is built from: a part of bundle.json.

    Attributes:
        version: Version of this part.
        source_sha256: The SHA-256 of bundle.json of the bundle that was compressed, in hex.
        git: The state of the code that compressed it.
        bits: The format of the weights (training/models/number_formats.py).
        rows: The share of the rows of embedding tables that were to be left out.
        units: The share of the units of hidden layers that were to be removed.
        kept_rows: The number of rows that each group of tables keeps; None for a group that keeps
            all of them.
        bottom_mlp: The widths of the hidden layers of the bottom MLP.
        top_mlp: The widths of the hidden layers of the top MLP.
        scale: The factor of the recalibration, which is in the weights of the last layer.
        shift: The term of the recalibration, which is in the bias of the last layer.
    """

    version: Literal[1]
    source_sha256: str
    git: Git
    bits: Bits
    rows: Fraction
    units: Fraction
    kept_rows: list[NotNegative | None]
    bottom_mlp: list[Positive]
    top_mlp: list[Positive]
    scale: float
    shift: float

    @property
    def source_version(self) -> str:
        """The version of the model that was compressed."""
        return version_from_sha256(self.source_sha256)


def load_compressed_model(
    path: Path, compression: Compression, params: Model, state: FeatureState
) -> DLRM:
    """Load one model of a compressed bundle.

    Args:
        path: The file of its weights.
        compression: How it was compressed.
        params: The parameters of the model that was compressed.
        state: The feature state.

    Raises:
        DataError: A tensor has another name, shape or dtype than the manifest says, or a value that
            the compression cannot have written.
    """
    stored = read_stored(path)
    model = _empty_model(path, stored, compression, params, state)
    expected = {
        name: Stored(tuple(tensor.shape), DTYPE_NAMES[tensor.dtype])
        for name, tensor in model.state_dict().items()
    }
    for name in sorted(stored.keys() | expected.keys()):
        _check_tensor(path, name, stored.get(name), expected.get(name))
    tensors = map_tensors(path)
    for name, tensor in tensors.items():
        if tensor.dtype == torch.float32:
            check_finite(path, name, tensor)
    model.load_state_dict(tensors, assign=True)
    for name, part in model.named_modules():
        if isinstance(part, (CompressedTables, CompressedLinear)) and (fault := part.fault()):
            raise DataError(f"{path}: {name}: {fault}; {RESTORE}")
        if isinstance(part, CompressedTables):
            part.make_index()
        elif isinstance(part, CompressedLinear):
            part.decode_weight()
    return model


def _empty_model(
    path: Path,
    stored: Mapping[str, Stored],
    compression: Compression,
    params: Model,
    state: FeatureState,
) -> DLRM:
    """Build the model without its weights. It takes no more memory than the file has bytes."""
    widths = {"bottom_mlp": compression.bottom_mlp, "top_mlp": compression.top_mlp}
    params = params.model_copy(update=widths)
    num_dense, inputs = len(state.schema.dense_features), inputs_of(state.schema)
    # make_tables checks the rows of the tables
    num_others = num_dense_weights(params, state.cardinalities, num_dense, inputs)
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    check_size(shapes, num_others, path)
    try:
        model = build_model(
            params, state.cardinalities, num_dense, torch.Generator(), Tables, inputs
        )
    except ConfigError as error:
        raise as_data_error(error, f"{path.with_name(MANIFEST)} says so; {RESTORE}") from None
    groups = model.embeddings.tables
    if len(groups) != len(compression.kept_rows):
        raise DataError(
            f"{path.with_name(MANIFEST)}: compression.kept_rows does not have one number for each"
            f" group of embedding tables; {RESTORE}"
        )
    for group, kept in enumerate(compression.kept_rows):
        without_rows = groups[group]
        assert isinstance(without_rows, Tables)
        cardinalities = [end - start for start, end in without_rows.spans]
        num_rows = sum(cardinalities) if kept is None else kept + len(cardinalities)
        name = f"embeddings.tables.{group}"
        found = stored.get(f"{name}.codes") or stored.get(f"{name}.weight")
        if found is None or found.shape[:1] != (num_rows,):
            raise _other_rows(path, name, found, num_rows)
        dim = without_rows.embedding_dim
        groups[group] = empty_tables(cardinalities, dim, compression.bits, kept)
    compress_layers(model, compression.bits)
    return model


def empty_tables(
    cardinalities: Sequence[int], embedding_dim: int, bits: Bits, num_kept: int | None
) -> Tables:
    """Make the tables that store some rows in a format; they have no rows yet."""
    if bits == 32 and num_kept is None:
        return WITHOUT_ROWS(cardinalities, embedding_dim, torch.Generator())
    return CompressedTables(cardinalities, embedding_dim, bits=bits, num_kept=num_kept)


def _check_tensor(path: Path, name: str, found: Stored | None, expected: Stored | None) -> None:
    if found != expected:
        shown = [
            "none" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
            for tensor in (found, expected)
        ]
        raise DataError(
            f"{path}: tensor {one_line(name)}: {shown[0]} found, {shown[1]} expected from the"
            f" feature state and {MANIFEST}; {RESTORE}"
        )


def _other_rows(path: Path, name: str, found: Stored | None, num_rows: int) -> DataError:
    num_found = f"{found.shape[0]:,}" if found and found.shape else "no"
    return DataError(
        f"{path}: {name}: {num_found} rows found, {num_rows:,} expected from the feature state and"
        f" {MANIFEST}; {RESTORE}"
    )
