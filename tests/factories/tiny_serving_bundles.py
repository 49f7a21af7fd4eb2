"""Serving bundles with a tiny model, made in a fraction of a second and without PyTorch."""

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import polars as pl
from onnx import TensorProto, helper, numpy_helper

from common.checked_json import write_checked_json
from common.files import sha256_file
from features.encode.feature_state import FeatureState
from features.ingest.readers.row_validation import typed_columns
from serving.runtime import DENSE, IDS, SCORE
from serving.serving_bundle import MODEL_FILE, SERVING_MANIFEST, STATE, files_of
from tests.factories.online import fit_state
from tests.factories.support import CRITEO

NUM_ROWS = 200
WIDTH = 8
NUM_VALUES = 30  # of each categorical column; `lines` has others too


def lines(num_rows: int, seed: int = 2) -> list[str]:
    """Return random rows in Criteo's format, without the label; some values are missing."""
    rng = np.random.default_rng(seed)
    columns = []
    for name in CRITEO.log_columns(labelled=False):
        values = rng.integers(-2 if name in CRITEO.dense else 0, 2 * NUM_VALUES, num_rows)
        texts = [f"{value}" if name in CRITEO.dense else f"{value:08x}" for value in values]
        columns.append(np.where(rng.random(num_rows) < 0.1, "", texts))
    return ["\t".join(row) for row in zip(*columns, strict=True)]


def records(num_rows: int, seed: int = 2) -> list[dict[str, object]]:
    """Return the rows of `lines` as records: numbers, texts and nulls."""
    return [record_of(line) for line in lines(num_rows, seed)]


def record_of(line: str) -> dict[str, object]:
    """Return the record of a line without the label."""
    names = CRITEO.log_columns(labelled=False)
    values = zip(names, line.split("\t"), strict=True)
    return {
        name: None if value == "" else int(value) if name in CRITEO.dense else value
        for name, value in values
    }


@cache
def _state(seed: int) -> FeatureState:
    rng = np.random.default_rng(seed)
    dtypes = typed_columns(CRITEO)
    rows = pl.DataFrame(
        {
            name: pl.Series(
                name, rng.integers(0, 2 if name == CRITEO.label else NUM_VALUES, NUM_ROWS)
            ).cast(dtype)
            for name, dtype in dtypes.items()
        }
    )
    return fit_state(CRITEO, rows)


def write_serving_bundle(directory: Path, seed: int = 1) -> str:
    """Write a serving bundle, and return its version; another seed gives another model.

    The model has one hidden layer. Its scores have the same bits in every batch, as real ones.
    """
    state = _state(seed)
    state.save(directory / STATE)
    onnx.save(_model(state, seed), directory / MODEL_FILE)
    version = f"{seed:012x}"
    write_checked_json(
        directory / SERVING_MANIFEST,
        {
            "format": 1,
            "model_version": version,
            "runtime": "onnx",
            "opset": 20,
            "tables": "fp32",
            "mlps": "fp32",
            "short_rows": "quarantine",
            "versions": {},
            "parity": {"rows": 0, "max_difference": 0.0},
            "logloss": {"trained": 0.0, "exported": 0.0},
            "files": {name: sha256_file(directory / name) for name in files_of(directory)},
        },
    )
    return version


def _model(state: FeatureState, seed: int) -> onnx.ModelProto:
    rng = np.random.default_rng(seed)
    num_dense, num_ids = len(state.schema.dense_features), len(state.schema.categorical_features)
    constants = {
        "weights": rng.normal(0, 0.05, (num_dense + num_ids, WIDTH)).astype(np.float32),
        "ones": np.ones((WIDTH, 1), np.float32),
        "axis": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Cast", [IDS], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Concat", [DENSE, "numbers"], ["inputs"], axis=1),
        helper.make_node("MatMul", ["inputs", "weights"], ["hidden"]),
        helper.make_node("Tanh", ["hidden"], ["bounded"]),
        helper.make_node("MatMul", ["bounded", "ones"], ["logits"]),
        helper.make_node("Squeeze", ["logits", "axis"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], [SCORE]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info(DENSE, TensorProto.FLOAT, ["B", num_dense]),
            helper.make_tensor_value_info(IDS, TensorProto.INT32, ["B", num_ids]),
        ],
        [helper.make_tensor_value_info(SCORE, TensorProto.FLOAT, ["B"])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = helper.make_opsetid("", 20)
    return helper.make_model(graph, opset_imports=[opset], ir_version=10)
