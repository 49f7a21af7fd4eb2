"""The search for `model.tables: {name: per_column}`: a dim for each column within a budget.

One training gives a supernet with shared weights (training/tune/supernet.py), an evolution finds
dims with it (training/tune/evolution.py), and trainings from scratch confirm them beside the
uniform model of the same budget.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.artifact import Artifact
from common.bundle_layout import STATE
from common.config.loading import ConfigError
from common.config.model import Full, PerColumn
from common.config.params import Params
from common.config.yaml_text import flow
from common.files import write_json
from common.layout import FEATURES
from common.logs import get_logger
from common.progress import Progress
from features.encode.feature_state import FeatureState
from features.schema.schema import Schema
from training.models.factory import inputs_of, table_sizes
from training.stage import check_features
from training.tune.evolution import GENERATIONS, PARENTS, POPULATION, Dims, Evolution
from training.tune.supernet import Supernet, dim_choices, train_supernet
from training.tune.trial import Task, run_trial

log = get_logger("tune")

RESULT = Path("runs/tune/dims.json")
# What a training of the search has in place of the values of params.yaml.
SEARCH_VALUES = {
    "devices": 1,
    "nodes": 1,
    "parallel": "hybrid",
    "logger": "none",
    "profile": False,
    "warm_start_from": None,  # a bundle has tables of other dims
}
SUPERNET_VALUES = {"early_stopping_patience": None}


@dataclass(frozen=True)
class Candidate:
    """A model that is confirmed.

    Attributes:
        name: What it is, such as `uniform 4`.
        params: Its parameters.
        table_numbers: The number of numbers in its embedding tables.
    """

    name: str
    params: Params
    table_numbers: int


def search_dims(params: Params, root: Path, budget: float, num_seeds: int) -> dict[str, Any]:
    """Search, confirm, and write what was found to root/runs/tune/dims.json.

    The same inputs give the same bytes.

    Args:
        params: The parameters of params.yaml.
        root: The project folder, with artifacts/features.
        budget: The share of the numbers of the uniform model's embedding tables, above 0, to 1.
        num_seeds: The number of seeds of the confirmation, from `train.seed` on.

    Returns:
        The contents of dims.json.

    Raises:
        ConfigError: The budget is too small, there is nothing to choose, or a training diverged.
        DataError: There are no features, or a file of them is damaged.
    """
    features = Artifact.open(root / FEATURES)
    check_features(features)
    state = FeatureState.load(features.folder / STATE)
    num_rows = table_sizes(state.cardinalities, inputs_of(state.schema))
    if not num_rows:
        raise ConfigError("clickmill tune dims: there is no categorical feature")
    embedding_dim = params.model.embedding_dim
    numbers = budget * embedding_dim * sum(num_rows)
    seed = params.train.seed
    evolution = Evolution(num_rows, dim_choices(embedding_dim), numbers, seed)
    supernet = train_supernet(_with(params, model={"tables": Full(name="full")}, is_net=True), root)
    dims = _evolve(evolution, supernet)
    tables = tables_section(state.schema, dims, embedding_dim)
    log.info(f"tables: {flow(tables.model_dump())}")
    candidates = _candidates(params, num_rows, dims, tables, budget)
    found = {
        "budget": budget,
        "embedding_dim": embedding_dim,
        "tables": tables.model_dump(),
        "supernet": {
            "rows": supernet.num_rows,
            "logloss": supernet.loss(dims),
            "logloss_of_all_numbers": supernet.loss((embedding_dim,) * len(num_rows)),
        },
        "confirmed": _confirm(candidates, root, range(seed, seed + num_seeds)),
    }
    write_json(root / RESULT, found)
    return found


def tables_section(schema: Schema, dims: Dims, embedding_dim: int) -> PerColumn:
    """Return the section `model.tables` with the dims that are not the embedding dim.

    Args:
        schema: The columns.
        dims: The dim of each table of the schema, (T,).
        embedding_dim: D.
    """
    return PerColumn(
        name="per_column",
        dims={
            column: dim
            for columns, dim in zip(schema.tables.values(), dims, strict=True)
            for column in columns
            if dim != embedding_dim
        },
    )


def _with(
    params: Params, model: dict[str, Any], *, seed: int | None = None, is_net: bool = False
) -> Params:
    """Return the parameters of a training of the search."""
    train = SEARCH_VALUES | {"seed": params.train.seed if seed is None else seed}
    if is_net:
        train |= SUPERNET_VALUES | {"validations": params.train.epochs}
    return params.model_copy(
        update={
            "model": params.model.model_copy(update=model),
            "train": params.train.model_copy(update=train),
        }
    )


def _evolve(evolution: Evolution, supernet: Supernet) -> Dims:
    largest = POPULATION + GENERATIONS * (POPULATION - PARENTS)
    with Progress("search", largest, None, unit="models") as progress:

        def loss(dims: Dims) -> float:
            value = supernet.loss(dims)
            progress.update(1)
            return value

        return evolution.search(loss)


def _candidates(
    params: Params, num_rows: Sequence[int], dims: Dims, tables: PerColumn, budget: float
) -> list[Candidate]:
    """Return the model that was found, and the uniform one of at most the same budget."""
    uniform_dim = max(1, int(budget * params.model.embedding_dim))
    uniform = {"tables": Full(name="full"), "embedding_dim": uniform_dim}
    numbers = sum(rows * dim for rows, dim in zip(num_rows, dims, strict=True))
    return [
        Candidate("searched", _with(params, {"tables": tables}), numbers),
        Candidate(f"uniform {uniform_dim}", _with(params, uniform), uniform_dim * sum(num_rows)),
    ]


def _confirm(
    candidates: Sequence[Candidate], root: Path, seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """Train each candidate with each seed; a training that fails has its error as the result."""
    rows = []
    with Progress("confirm", len(candidates) * len(seeds), None, unit="trainings") as progress:
        for seed in seeds:
            for candidate in candidates:
                title = f"{candidate.name} with seed {seed}"
                task = Task(title, _with(candidate.params, {}, seed=seed), root)
                outcome = run_trial(task)
                result = outcome.result
                rows.append(
                    {
                        "model": candidate.name,
                        "seed": seed,
                        "table_numbers": candidate.table_numbers,
                        "logloss": None if result is None else result.logloss,
                        "auc": None if result is None else result.auc,
                        "error": outcome.error,
                    }
                )
                progress.update(1)
    return rows
