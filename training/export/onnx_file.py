"""The model as an ONNX file, which has the weights, the operators and nothing of this machine."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir
import torch
from torch.export import ExportedProgram

from serving.runtime import SCORE
from serving.serving_bundle import MODEL_FILE
from training.export.traced_model import BATCH, input_names

OPSET = 20
# Weights above this lie in a file of their own. ONNX Runtime maps that file, so that processes that
# serve the same model share its memory; an ONNX file itself has at most 2 GiB.
MAX_BYTES_INSIDE = 16 << 20
EXTERNAL_DATA = f"{MODEL_FILE}.data"


def write_onnx(program: ExportedProgram, directory: Path) -> None:
    """Write model.onnx, and model.onnx.data if its weights are large.

    Args:
        program: The model (training/export/traced_model.py).
        directory: The folder.
    """
    with _quiet():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            input_names=input_names(program),
            output_names=[SCORE],
            opset_version=OPSET,
            verbose=False,
        )
    assert exported is not None
    model = exported.model
    _remove_traces(model)
    weights = [value.const_value for value in model.graph.initializers.values()]
    num_bytes = sum(weight.nbytes for weight in weights if weight is not None)
    external = EXTERNAL_DATA if num_bytes > MAX_BYTES_INSIDE else None
    onnx_ir.save(model, directory / MODEL_FILE, external_data=external)


def _remove_traces(model: onnx_ir.Model) -> None:
    """Remove what describes the export and not the model: paths and line numbers of this code."""
    graph = model.graph
    nodes = list(graph.all_nodes())
    of_nodes = [value for node in nodes for value in node.outputs]
    values = [*graph.inputs, *graph.initializers.values(), *of_nodes]
    parts: list[onnx_ir.Model | onnx_ir.Graph | onnx_ir.Node | onnx_ir.Value]
    parts = [model, graph, *nodes, *values]
    for part in parts:
        part.metadata_props.clear()
        part.doc_string = None
    for value in of_nodes:
        if not value.is_graph_output():
            value.shape = None  # ONNX Runtime infers it
    for value in [*graph.inputs, *graph.outputs]:
        assert value.shape is not None
        names = [dim if isinstance(dim, int) else BATCH.__name__ for dim in value.shape]
        value.shape = onnx_ir.Shape(names)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out the exporter's remarks about libraries that no model here uses."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
