"""The runtimes that can compute the scores of one bundle, by rows of a batch and threads.

    python benchmarks/runtimes.py [--root PATH] [--batch 1 16 256 8192] [--threads 1 2] [--rounds 9]

All compute the same scores of the same encoded test rows, in one process. They take turns: in each
round, each of them scores batches for about WINDOW_S. A cell has the median and the 99th percentile
of the time of a call in microseconds, and how many times as fast as plain PyTorch its median is.

    PyTorch            PyTorch's operators only
    PyTorch, oneDNN    the linear layers by oneDNN, as `clickmill predict` without a compiler
    PyTorch, compiled  the compiled kernels
    torch.compile      PyTorch's operators, compiled on first use; needs a C++ compiler
    AOTInductor        `clickmill export --runtime aoti`; needs a C++ compiler
    ONNX Runtime       `clickmill export --runtime onnx`
    OpenVINO           the same file; left out unless openvino is installed

The kernels that `training/kernels/choice.py` picks on this machine are marked `as shipped`. --root
names a project folder with artifacts/features and artifacts/model; without it a model is trained on
the built-in sample with the shipped parameters, one of its ensemble.
"""

import argparse
import importlib.util
import itertools
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from quality import make_features, with_values
from speed import machine
from torch import Tensor

from common.artifact import Artifact
from common.bundle_layout import MODEL
from common.config.params import load_params
from common.layout import FEATURES
from common.threads import limit_threads
from features.collect.stage import BUILT_IN
from serving.runtime import DENSE, IDS, Runtime
from serving.serving_bundle import MODEL_FILE, PACKAGE_FILE
from training.export.aoti_package import write_package
from training.export.onnx_file import write_onnx
from training.export.test_rows import TestRows
from training.export.traced_model import PLAIN_PYTORCH, Scorer, trace
from training.inference.aoti_package import load_package
from training.inference.bundle import Bundle, load_bundle
from training.kernels import choice
from training.kernels.choice import Implementations
from training.kernels.compiler import library
from training.stage import train

WINDOW_S = 0.15
MAX_CALLS = 200  # of a window
NUM_BATCHES = 64  # different ones at most, which follow each other
PLAIN = "PyTorch"
EAGER = {
    PLAIN: PLAIN_PYTORCH,
    "PyTorch, oneDNN": Implementations("pytorch", "onednn"),
    "PyTorch, compiled": Implementations("compiled", "compiled"),
}


@dataclass(frozen=True)
class Batch:
    """Encoded rows, dense (B, N) and ids (B, F), for PyTorch and for the others."""

    dense: NDArray[np.float32]
    ids: NDArray[np.int32]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The same memory as tensors."""
        return {DENSE: torch.from_numpy(self.dense), IDS: torch.from_numpy(self.ids)}


Call = Callable[[Any], Any]


@dataclass
class Contender:
    """A runtime with the model, ready to score.

    Attributes:
        name: Its name in the table.
        call: Scores what `inputs_of` makes of a batch, as scores (B,).
        inputs_of: Makes its inputs of a batch, outside of the measured time.
        built_s: How long it took to get ready.
        times_us: The time of each measured call.
        max_difference: The largest difference of a score to plain PyTorch's.
    """

    name: str
    call: Call
    inputs_of: Callable[[Batch], Any]
    built_s: float
    times_us: list[float] = field(default_factory=list)
    max_difference: float = 0.0


def eager(scorer: Scorer, implementations: Implementations) -> Call:
    """Return PyTorch with the given implementations of the operators."""

    def call(inputs: dict[str, Tensor]) -> Tensor:
        with choice.forced(implementations), torch.inference_mode():
            return scorer(inputs)

    return call


def compiled(scorer: Scorer, example: Batch) -> Call:
    """Return torch.compile, after a call for which it compiles any number of rows."""
    torch._dynamo.reset()
    module = torch.compile(scorer, dynamic=True)

    def call(inputs: dict[str, Tensor]) -> Tensor:
        with choice.forced(PLAIN_PYTORCH), torch.inference_mode():
            return module(inputs)

    call(example.tensors)
    return call


def traced(bundle: Bundle) -> torch.export.ExportedProgram:
    """Return the operators of the model."""
    schema = bundle.state.schema
    return trace(bundle.model, len(schema.dense_features), len(schema.single_valued_features))


def aot_inductor(bundle: Bundle, folder: Path) -> Call:
    """Return the package of `clickmill export --runtime aoti`."""
    write_package(traced(bundle), folder)
    scores = load_package(folder / PACKAGE_FILE)
    return lambda batch: scores(batch.dense, batch.ids)


def onnx_runtime(path: Path, num_threads: int) -> Call:
    """Return the runtime of `clickmill serve`."""
    runtime = Runtime(path, num_threads)
    return lambda batch: runtime.scores(batch.dense, batch.ids)


def openvino(path: Path, num_threads: int) -> Call:
    """Return OpenVINO, in fp32 and for the shortest time of a call."""
    import openvino as ov

    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    options = hints | {"INFERENCE_NUM_THREADS": num_threads}
    model = ov.Core().compile_model(path, "CPU", options)
    request, names = model.create_infer_request(), {name for i in model.inputs for name in i.names}

    def call(batch: Batch) -> Any:
        values = {DENSE: batch.dense, IDS: batch.ids}
        inputs = {name: value for name, value in values.items() if name in names}
        return request.infer(inputs, share_inputs=True, share_outputs=True)[0]

    return call


def contenders(
    bundle: Bundle, folder: Path, num_threads: int, example: Batch
) -> Iterator[Contender]:
    """Make all runtimes that this machine has.

    Args:
        bundle: The model.
        folder: Where the files of the model are, or are written.
        num_threads: The threads of a call. The code of torch.compile contains it.
        example: Any batch.
    """
    scorer = Scorer(bundle.model).eval()
    makers: dict[str, Callable[[], Call]] = {
        name: partial(eager, scorer, implementations)
        for name, implementations in EAGER.items()
        if library() or "compiled" not in implementations
    }
    if library():
        makers["torch.compile"] = partial(compiled, scorer, example)
    path = folder / MODEL_FILE
    of_arrays: dict[str, Callable[[], Call]] = {}
    if library():
        of_arrays["AOTInductor"] = partial(aot_inductor, bundle, folder)
    of_arrays["ONNX Runtime"] = partial(onnx_runtime, path, num_threads)
    if importlib.util.find_spec("openvino"):
        of_arrays["OpenVINO"] = partial(openvino, path, num_threads)
    for name, make in (makers | of_arrays).items():
        started_s = time.perf_counter()
        call = make()
        inputs_of = (lambda batch: batch) if name in of_arrays else (lambda batch: batch.tensors)
        yield Contender(name, call, inputs_of, time.perf_counter() - started_s)


def compare(contenders: list[Contender], batches: list[Batch], num_rounds: int) -> None:
    """Measure the calls of all contenders, in turns, and compare their scores."""
    plain = contenders[0]
    for one in contenders:
        one.times_us.clear()
        one.max_difference = max(
            float(np.abs(scores(one, batch) - scores(plain, batch)).max()) for batch in batches
        )
    for _ in range(num_rounds):
        for one in contenders:
            inputs = itertools.cycle([one.inputs_of(batch) for batch in batches])
            one.call(next(inputs))  # the caches are those of the contender before
            started_s = time.perf_counter()
            for _ in range(MAX_CALLS):
                batch, began_s = next(inputs), time.perf_counter()
                one.call(batch)
                ended_s = time.perf_counter()
                one.times_us.append(1e6 * (ended_s - began_s))
                if ended_s - started_s > WINDOW_S:
                    break


def scores(contender: Contender, batch: Batch) -> NDArray[np.float64]:
    """Return the scores (B,) of a batch."""
    found = contender.call(contender.inputs_of(batch))
    return np.array(found, np.float64).reshape(-1)


def cut(rows: TestRows, num_rows: int) -> list[Batch]:
    """Return batches of a number of rows, which begin anywhere in the test rows."""
    count = max(1, min(NUM_BATCHES, len(rows.ids) // num_rows))
    starts = np.linspace(0, max(0, len(rows.ids) - num_rows), count, dtype=int)
    repeats = -(-num_rows // len(rows.ids))
    dense, ids = (np.tile(values, (repeats, 1)) for values in (rows.dense, rows.ids))
    return [
        Batch(
            np.ascontiguousarray(dense[start : start + num_rows]),
            np.ascontiguousarray(ids[start : start + num_rows]),
        )
        for start in starts
    ]


def shipped(name: str, num_rows: int) -> bool:
    """Return whether a contender is what `clickmill predict` uses here for so many rows."""
    pair = Implementations(choice.operators(), choice.layers(num_rows, "fp32"))
    return EAGER.get(name) == pair


def measure(
    bundle: Bundle, rows: TestRows, folder: Path, num_threads: int, options: argparse.Namespace
) -> None:
    """Print the table for a number of threads."""
    torch.set_num_threads(num_threads)
    found = list(contenders(bundle, folder, num_threads, cut(rows, 16)[0]))
    cells: dict[str, list[str]] = {one.name: [] for one in found}
    differences = dict.fromkeys(cells, 0.0)
    for num_rows in options.batch:
        compare(found, cut(rows, num_rows), options.rounds)
        medians = {one.name: statistics.median(one.times_us) for one in found}
        for one in found:
            p50, p99 = medians[one.name], float(np.quantile(one.times_us, 0.99))
            ratio = f"{medians[PLAIN] / p50:.2f}"
            if p50 == min(medians.values()):
                ratio = f"**{ratio}**"
            cells[one.name].append(f"{p50:,.0f} / {p99:,.0f} ({ratio})")
            differences[one.name] = max(differences[one.name], one.max_difference)
    heads = " | ".join(f"B = {num_rows:,}" for num_rows in options.batch)
    print(f"\n| threads: {num_threads} | {heads} | max difference | ready in |")
    print("|---" * (len(options.batch) + 3) + "|")
    for one in found:
        mark = ", as shipped" if shipped(one.name, options.batch[-1]) else ""
        difference = f"{differences[one.name]:.1e}" if one.name != PLAIN else ""
        line = [f"{one.name}{mark}", *cells[one.name], difference, f"{one.built_s:.2f} s"]
        print(f"| {' | '.join(line)} |", flush=True)


def main() -> None:
    """Train or load a model, and print a table for each number of threads."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, help="a project folder with features and a model")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 256, 8192])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        root = options.root or folder
        if not options.root:
            params = with_values(
                load_params(), data={"source": BUILT_IN}, train={"ensemble_size": 1}
            )
            make_features(params, root)
            with redirect_stdout(StringIO()):
                train(params, root)
        bundle = load_bundle(root / MODEL)
        rows = TestRows.read(Artifact.open(root / FEATURES), bundle.state.schema)
        write_onnx(traced(bundle), folder)
        num_weights = sum(weight.numel() for weight in bundle.model.parameters())
        print(machine.describe(max(options.threads), "cpu"))
        print(f"model {bundle.version}: {num_weights:,} parameters; {options.rounds} rounds")
        if not library():
            print("torch.compile and AOTInductor are left out: no C++ compiler")
        if not importlib.util.find_spec("openvino"):
            print("OpenVINO is left out: not installed")
        for num_threads in options.threads:
            measure(bundle, rows, folder, num_threads, options)


if __name__ == "__main__":
    limit_threads()
    main()
