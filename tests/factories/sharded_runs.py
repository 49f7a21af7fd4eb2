"""One rank of a training run whose sharded tables have every kind of placement."""

from pathlib import Path
from typing import Any

from common.config.params import Params
from tests.factories.ranks import quietly
from training import stage as train
from training.loop.checkpoint import checkpoints_of

KINDS = ["table_wise", "row_wise", "replicated"]


def choose_each_kind(groups: Any, *_: Any) -> list[list[str]]:
    """Return the kinds of KINDS in turn for the tables of each group. Replaces choose_kinds."""
    return [[KINDS[k % len(KINDS)] for k in range(len(group.cardinalities))] for group in groups]


def with_cached_tables(place: Any) -> Any:
    """Return a replacement of `place` that caches all tables, as on GPUs with too little memory.

    CPU ranks ignore that a table is cached.
    """
    from training.distributed.sharding.planner import CACHED

    def place_cached(*arguments: Any) -> Any:
        placements = place(*arguments)
        for placement in placements:
            for sharding in placement.shardings.values():
                sharding.compute_kernel = CACHED
        return placements

    return place_cached


def fit_rank(params: Params, root: Path) -> None:
    """Run one rank's part of the train stage. With four ranks all tables are cached."""
    quietly(root, "output.txt")
    if params.train.devices > 1:
        from training.distributed.sharding import strategy

        strategy.choose_kinds = choose_each_kind
        if params.train.devices == 4:
            strategy.place = with_cached_tables(strategy.place)
    train.fit(params, root, "cpu", checkpoints_of(params, "cpu", root))


def fit_rank_until(params: Params, root: Path, stop: int) -> None:
    """Run one rank's part of the train stage until an error at a step."""
    from training.loop.lightning_module import TrainDLRM

    training_step = TrainDLRM.training_step

    def interrupted(module: TrainDLRM, *args: Any) -> None:
        if module.global_step == stop:
            raise KeyError("interrupted")
        training_step(module, *args)

    TrainDLRM.training_step = interrupted  # type: ignore[method-assign]
    fit_rank(params, root)
