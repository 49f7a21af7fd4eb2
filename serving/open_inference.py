"""The Open Inference Protocol, version 2, over HTTP: a model's inputs are its columns.

Each column of the schema is an input tensor of its name, of shape [B] or [B, 1]. The output is the
tensor `score`. https://github.com/kserve/open-inference-protocol has the protocol.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.online.encoded_rows import BadRow
from features.schema.schema import CategoricalColumns, DenseColumns, Schema
from serving.http import HttpError, shown
from serving.log_keys import Keys
from serving.request_log import key_text
from serving.served_model import ServedModel

OUTPUT = "score"
PLATFORM = "clickmill_onnx"


def _is_integer(bits: int) -> Callable[[Any], bool]:
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    return lambda value: type(value) is int and low <= value <= high


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


# What the values of a tensor of each type may be in JSON. Null stands for a missing value.
TYPES: dict[str, Callable[[Any], bool]] = {
    "BOOL": lambda value: type(value) is bool,
    "INT32": _is_integer(32),
    "INT64": _is_integer(64),
    "FP32": _is_number,
    "FP64": _is_number,
    "BYTES": lambda value: type(value) is str,
}


def records_of(request: Any, columns: list[str], max_rows: int) -> list[dict[str, Any]]:
    """Return the rows of an inference request as records.

    Args:
        request: The JSON value of the request.
        columns: The columns that the model needs; others may be there too.
        max_rows: The largest number of rows.

    Raises:
        HttpError: The request is not as the protocol says, or a column is missing.
    """
    if not isinstance(request, dict) or not isinstance(request.get("inputs"), list):
        raise HttpError(422, 'an object with the key "inputs", a list of tensors, expected')
    outputs = request.get("outputs") or []
    if not isinstance(outputs, list) or not all(map(_is_score, outputs)):
        raise HttpError(422, f'outputs: a list expected; this model has one output, "{OUTPUT}"')
    tensors: dict[str, list[Any]] = {}
    for tensor in request["inputs"]:
        name, values = _values_of(tensor)
        if name in tensors:
            raise HttpError(422, f"inputs: two tensors have the name {shown(name)!r}")
        tensors[name] = values
    if missing := [name for name in columns if name not in tensors]:
        raise HttpError(422, f"inputs: no tensor {shown(', '.join(missing))}; each column has one")
    num_rows = len(tensors[columns[0]])
    for name, values in tensors.items():
        if len(values) != num_rows:
            raise HttpError(
                422,
                f"inputs: {shown(name)} has {len(values)} values, but {columns[0]} has {num_rows}",
            )
    if num_rows > max_rows:
        raise HttpError(413, f"{num_rows:,} rows, but at most {max_rows:,} a request are accepted")
    rows = zip(*(tensors[name] for name in columns), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def keys_of(request: Mapping[str, Any], schema: Schema, column: str) -> Keys | None:
    """Return the keys of a request's rows for the request log, from the tensor of a column.

    Args:
        request: A request that `records_of` took.
        schema: The schema of the model, on which it does not depend.
        column: The column of the keys.

    Returns:
        The keys; None if there is no such tensor.
    """
    tensor = next((one for one in request["inputs"] if one["name"] == column), None)
    return None if tensor is None else [key_text(value) for value in _values_of(tensor)[1]]


def _is_score(output: Any) -> bool:
    return isinstance(output, dict) and output.get("name") == OUTPUT


def _values_of(tensor: Any) -> tuple[str, list[Any]]:
    """Return the name and the values of an input tensor."""
    if not isinstance(tensor, dict) or not isinstance(tensor.get("name"), str):
        raise HttpError(422, 'inputs: each tensor is an object with a "name"')
    name = tensor["name"]
    where = f"inputs: {shown(name)}"
    is_right = TYPES.get(str(tensor.get("datatype")))
    if is_right is None:
        raise HttpError(422, f"{where}: datatype {' or '.join(TYPES)} expected")
    shape, values = tensor.get("shape"), tensor.get("data")
    if not isinstance(values, list):
        raise HttpError(422, f'{where}: "data", a list of values, expected')
    if len(values) and all(type(value) is list and len(value) == 1 for value in values):
        values = [value[0] for value in values]  # shape [B, 1], nested
    if shape not in ([len(values)], [len(values), 1]):
        raise HttpError(
            422, f"{where}: {len(values)} values, so shape [{len(values)}] expected, or with a 1"
        )
    for row, value in enumerate(values):
        if value is not None and not is_right(value):
            raise HttpError(422, f"{where}: row {row} is no {tensor['datatype']}")
    return name, values


def answer_of(
    name: str, model: ServedModel, request: Mapping[str, Any], scores_B: NDArray[np.float32]
) -> dict[str, Any]:
    """Return the JSON value of the answer to an inference request, with the scores of its rows."""
    answer: dict[str, Any] = {"model_name": name, "model_version": model.version}
    if isinstance(request.get("id"), str):
        answer["id"] = request["id"]
    output = {"name": OUTPUT, "shape": [len(scores_B)], "datatype": "FP32", "data": scores_B}
    return {**answer, "outputs": [output]}


def error_of(bad_rows: list[BadRow]) -> HttpError:
    """Return the error of a request with malformed rows: a tensor of numbers has no place for them.

    `POST /score` answers the other rows of such a request.
    """
    details = {"errors": [{"row": row, "reason": reason} for row, reason in bad_rows]}
    return HttpError(422, f"{len(bad_rows)} malformed rows", details=details)


def metadata_of(name: str, model: ServedModel) -> dict[str, Any]:
    """Return what the protocol tells of a model: its version, its inputs and its output."""
    types = _types_of(model.schema)
    inputs = [
        {"name": column, "datatype": types.get(column, "BYTES"), "shape": [-1]}
        for column in model.encoder.columns
    ]
    output = {"name": OUTPUT, "datatype": "FP32", "shape": [-1]}
    return {
        "name": name,
        "versions": [model.version],
        "platform": PLATFORM,
        "inputs": inputs,
        "outputs": [output],
    }


def _types_of(schema: Schema) -> dict[str, str]:
    """Return the type of tensor that fits each column best."""
    types = {"integer": "INT64", "float": "FP64"}
    return {
        name: types.get(group.parse, "BYTES")
        for group in schema.columns
        if isinstance(group, DenseColumns | CategoricalColumns)
        for name in group.names
    }
