"""The inputs of a model as matrices."""

import numpy as np
import polars as pl

from features.encode.matrices import dense_matrix, id_matrix
from features.schema.schema import Schema
from tests.factories.support import CRITEO

NUM_ROWS = 3


def test_each_feature_is_a_column() -> None:
    columns = {name: [float(k)] * NUM_ROWS for k, name in enumerate(CRITEO.dense_features)}
    dense = dense_matrix(pl.DataFrame(columns), CRITEO)
    assert (dense.dtype, dense.flags.c_contiguous) == (np.float32, True)
    assert (dense == np.arange(len(columns))).all()
    ids = id_matrix(pl.DataFrame({name: range(NUM_ROWS) for name in CRITEO.categorical}), CRITEO)
    assert ids.dtype == np.int32
    assert (np.arange(NUM_ROWS) == ids.T).all()


def test_without_features_there_are_still_rows() -> None:
    values = CRITEO.model_dump(exclude={"sample"})
    values["columns"] = [group for group in values["columns"] if group["kind"] != "dense"]
    schema = Schema.model_validate(values)
    rows = pl.DataFrame({name: range(NUM_ROWS) for name in CRITEO.categorical})
    assert dense_matrix(rows, schema).shape == (NUM_ROWS, 0)
