"""Speed and quality of each interaction, kind of tables and loss, with other parameters as shipped.

    python benchmarks/models.py [--log PATH] [--seeds 3] [--rounds 9]

The table has for each variant:

    parameters      number of parameters
    CPU ms a step   processor time of a training step: embedding lookup, forward and backward
                    pass, both optimizers; the median of rounds in which all variants take turns
    x               that time divided by the first variant's
    logloss, AUC, score / clicks
                    of the validation rows, means over the seeds; the last one is the mean score
                    divided by the click rate

The log is the built-in sample unless --log is given.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from quality import encoded, make_features, train_and_score, with_values

from common.artifact import Artifact
from common.config.params import Params, load_params
from common.layout import FEATURES
from features.collect.stage import BUILT_IN
from features.encode.feature_state import FeatureState
from training.bench.step import Step
from training.evaluation.metrics import metrics_of_rows
from training.loop.batches import Batches
from training.loop.losses import make_loss
from training.models.factory import build_model

STEPS_PER_ROUND = 5
QR = {"name": "quotient_remainder", "collisions": 4, "threshold": 200}
BCE = {"name": "bce", "positive_weight": 1, "label_smoothing": 0}
VARIANTS: dict[str, dict[str, Any]] = {
    "dot, full tables, bce": {
        "interaction": {"name": "dot"},
        "tables": {"name": "full"},
        "loss": BCE,
    },
    "cat": {"interaction": {"name": "cat"}},
    "cross, 3 layers": {"interaction": {"name": "cross", "layers": 3, "rank": None}},
    "cross, 3 layers of rank 64": {"interaction": {"name": "cross", "layers": 3, "rank": 64}},
    "quotient_remainder, mult": {"tables": QR | {"operation": "mult"}},
    "quotient_remainder, add": {"tables": QR | {"operation": "add"}},
    "quotient_remainder, concat": {"tables": QR | {"operation": "concat"}},
    "mixed_dim, alpha 0.3": {"tables": {"name": "mixed_dim", "alpha": 0.3, "threshold": 200}},
    "positive_weight 3": {"loss": BCE | {"positive_weight": 3}},
    "label_smoothing 0.1": {"loss": BCE | {"label_smoothing": 0.1}},
    "focal, gamma 2, alpha 0.25": {"loss": {"name": "focal", "gamma": 2, "alpha": 0.25}},
}


def with_parts(params: Params, parts: dict[str, Any]) -> Params:
    """Return the parameters of a variant: the first one, with other parts."""
    return with_values(params, model=VARIANTS[next(iter(VARIANTS))] | parts)


def make_step(params: Params, state: FeatureState) -> tuple[Step, int]:
    """Return a training step, and the number of parameters of its model."""
    generator = torch.Generator().manual_seed(params.train.seed)
    model = build_model(
        params.model, state.cardinalities, len(state.schema.dense_features), generator
    )
    num_parameters = sum(weight.numel() for weight in model.parameters())
    return Step(model, make_loss(params.model.loss), params.train), num_parameters


def step_times(params: Params, root: Path, num_rounds: int) -> dict[str, tuple[float, int]]:
    """Measure the training steps of all variants.

    Processor time is measured, so that other processes matter little.

    Returns:
        For each variant the milliseconds of a step, of all threads together, and its parameters.
    """
    state = FeatureState.load(root / FEATURES / "state")
    size = params.train.batch_size
    files = Artifact.open(root / FEATURES).paths_in("train")
    rows = next(Batches(files, state.schema, batch_size=size).steps(0, 1)).rows
    steps = {name: make_step(with_parts(params, parts), state) for name, parts in VARIANTS.items()}
    taken_ms: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(num_rounds + 1):  # the first one warms up
        for name, (step, _) in steps.items():
            started = time.process_time()
            for _ in range(STEPS_PER_ROUND):
                step(rows)
            taken_ms[name].append(1000 * (time.process_time() - started) / STEPS_PER_ROUND)
    return {
        name: (statistics.median(taken_ms[name][1:]), num_parameters)
        for name, (_, num_parameters) in steps.items()
    }


def quality(params: Params, root: Path, seed: int) -> tuple[float, float, float]:
    """Return logloss, AUC and mean score / click rate of the validation rows after a training."""
    scores, _ = train_and_score(params, root, seed)
    labels = encoded(root)[0][1].labels.numpy()
    found = metrics_of_rows(labels, scores)
    return found["logloss"], found["auc"], found["calibration_ratio"]


def main() -> None:
    """Measure all variants and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--log", type=Path, help="a log in the shipped schema")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each variant")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of the step times")
    arguments = parser.parse_args()
    params = with_values(
        load_params(),
        data={"source": str(arguments.log.resolve()) if arguments.log else BUILT_IN},
        train={"ensemble_size": 1},
    )
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        make_features(params, root)
        times = step_times(params, root, arguments.rounds)
        first_ms = next(iter(times.values()))[0]
        print(
            "| variant | parameters | CPU ms a step | x | logloss | AUC | score / clicks |\n"
            "|---|---|---|---|---|---|---|"
        )
        for name, parts in VARIANTS.items():
            found = [
                quality(with_parts(params, parts), root, seed)
                for seed in range(1, arguments.seeds + 1)
            ]
            logloss, auc, ratio = (statistics.mean(figures) for figures in zip(*found, strict=True))
            ms, size = times[name]
            print(
                f"| {name} | {size:,} | {ms:.2f} | {ms / first_ms:.2f}"
                f" | {logloss:.4f} | {auc:.4f} | {ratio:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
