"""The settings of a search, tune.yaml: what is searched, how, and for what.

Keys of `space` and `set` are parameters of params.yaml, written with dots, such as
`model.embedding_dim`. training/tune/space.py checks their values.
"""

import json
import math
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from common.config.base import NotNegative, Positive, Rate, Strict

Cost = Literal["macs", "bytes", "parameters", "bytes_per_row"]
MAX_THREADS = 4096  # as train.threads
MAX_COMBINATIONS = 1_000_000  # of a grid, whose order is kept in memory
Share = Annotated[float, Field(ge=0.001, lt=1)]


class Choice(Strict):
    """A parameter with one of several values."""

    choice: Annotated[list[Any], Field(min_length=1)] = Field(description="The values.")

    @model_validator(mode="after")
    def _differ(self) -> "Choice":
        texts = [json.dumps(value, sort_keys=True) for value in self.choice]
        if repeated := [text for k, text in enumerate(texts) if text in texts[:k]]:
            raise ValueError(f"choice has {repeated[0]} twice; remove one")
        return self


class Range(Strict):
    """A parameter with any number of a range."""

    low: float | int = Field(description="The lowest value.")
    high: float | int = Field(description="The highest value.")
    log: bool = Field(description="true: a value is as likely to lie in 1 to 2 as in 10 to 20.")

    @property
    def is_whole(self) -> bool:
        """Whether the values are whole numbers: both ends are written as such."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @model_validator(mode="after")
    def _in_order(self) -> "Range":
        if self.low >= self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low {self.low} is not above 0, so it has no logarithm")
        if isinstance(self.low, int) != isinstance(self.high, int):
            raise ValueError(
                f"low {self.low} and high {self.high}: one is a whole number and the other is not;"
                " write 1.0 in place of 1 if the values are not whole"
            )
        return self


def _kind(values: Any) -> str:
    """Return whether the values of a key are meant as a choice or as a range."""
    if isinstance(values, Choice):
        return "choice"
    return "choice" if isinstance(values, dict) and "choice" in values else "range"


Values = Annotated[
    Annotated[Choice, Tag("choice")] | Annotated[Range, Tag("range")], Discriminator(_kind)
]


class Random(Strict):
    """Independent random values."""

    name: Literal["random"] = Field(description="Chooses random search.")


class Grid(Strict):
    """All combinations of the choices, in random order."""

    name: Literal["grid"] = Field(description="Chooses grid search; the space has choices only.")


class Tpe(Strict):
    """The tree-structured Parzen estimator (Bergstra et al. 2011)."""

    name: Literal["tpe"] = Field(description="Chooses Bayesian optimisation by TPE.")
    startup: Positive = Field(description="Number of first trials with random values.")


class Nsga2(Strict):
    """The genetic algorithm NSGA-II (Deb et al. 2002), for several objectives."""

    name: Literal["nsga2"] = Field(description="Chooses NSGA-II.")
    population: Annotated[int, Field(ge=2)] = Field(description="Trials of a generation.")


class NoStopping(Strict):
    """Every trial is trained to its end."""

    name: Literal["none"] = Field(description="No trial is stopped.")


class Median(Strict):
    """The median stopping rule (Golovin et al. 2017)."""

    name: Literal["median"] = Field(
        description="A trial stops if its lowest logloss so far is above the median of the others."
    )
    startup: Positive = Field(description="Number of trials before any is stopped.")
    warmup: Share = Field(description="Share of a run that no trial is stopped before.")


class Halving(Strict):
    """Asynchronous Successive Halving (Li et al. 2020), or Hyperband with its brackets."""

    name: Literal["successive_halving", "hyperband"] = Field(
        description="A trial stops at a rung unless it is in the best 1/eta that reached the rung."
        " hyperband: some trials begin with later rungs."
    )
    eta: Annotated[int, Field(ge=2)] = Field(
        description="A rung is this number of times as late as the one before."
    )
    min_share: Share = Field(description="Share of a run at the first rung.")


class Confirm(Strict):
    """The confirmation of the best trials with other seeds."""

    best: Positive = Field(description="Number of best trials that are trained again.")
    seeds: Annotated[int, Field(ge=2, le=100)] = Field(
        description="Number of seeds, for each of them and for the present params.yaml."
    )


Sampler = Annotated[Random | Grid | Tpe | Nsga2, Field(discriminator="name")]
Stop = Annotated[NoStopping | Median | Halving, Field(discriminator="name")]


class Tune(Strict):
    """The settings of a search (tune.yaml)."""

    seed: NotNegative = Field(description="Seed of the values that are tried.")
    trials: Annotated[int, Field(gt=0, le=100_000)] = Field(description="Number of trials.")
    window: Positive = Field(
        description="A trial is chosen from the outcomes of all trials but the last `window` - 1."
        " So a study is the same for any number of workers up to this one."
    )
    parallel: Positive = Field(description="Number of worker processes on this machine.")
    threads: Annotated[int, Field(gt=0, le=MAX_THREADS)] = Field(
        description="CPU threads of each worker; more than 1 only where cores are idle."
    )
    sampler: Sampler = Field(description="How the values of a trial are chosen.")
    stop: Stop = Field(description="When a trial is stopped early.")
    objectives: Annotated[list[Literal["logloss"] | Cost], Field(min_length=1)] = Field(
        description="What is minimised: logloss of the validation rows, and costs of a model"
        " (docs/guides/tuning.md)."
    )
    trade: dict[Cost, Rate] | None = Field(
        description="The rise of logloss that half of a cost is worth, such as {macs: 0.0005}."
        " null: the lowest logloss is best."
    )
    confirm: Confirm | None = Field(
        description="How the best trials are confirmed. null: they are not, and none is"
        " recommended."
    )
    set: dict[str, Any] = Field(
        description="Values of all trials in place of those in params.yaml."
    )
    space: Annotated[dict[str, Values], Field(min_length=1)] = Field(
        description="What is searched: parameter -> {choice: [...]} or {low, high, log}."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> "Tune":
        if self.window < self.parallel:
            raise ValueError(
                f"window {self.window} is below parallel {self.parallel}, so workers would wait;"
                " raise window or lower parallel"
            )
        if self.objectives[0] != "logloss" or len(set(self.objectives)) < len(self.objectives):
            raise ValueError(
                f"objectives {self.objectives}: logloss comes first, and each objective once"
            )
        if both := sorted(self.set.keys() & self.space.keys()):
            raise ValueError(f"{both[0]} stands in set and in space; remove one of the two")
        ranges = [key for key, values in self.space.items() if isinstance(values, Range)]
        if self.sampler.name == "grid" and ranges:
            raise ValueError(
                f"sampler grid takes choices only, and {ranges[0]} is a range; list its values, as"
                " {choice: [...]}, or take another sampler"
            )
        sizes = (len(values.choice) for values in self.space.values() if isinstance(values, Choice))
        num_combinations = math.prod(sizes)
        if self.sampler.name == "grid" and num_combinations > MAX_COMBINATIONS:
            raise ValueError(
                f"sampler grid: the space has {num_combinations:,} combinations, and at most"
                f" {MAX_COMBINATIONS:,} are allowed; list fewer values, or take another sampler"
            )
        return self
