"""Functions that turn the values of a request into features: dense inputs, and the keys of ids.

Each maker makes all features of one transform from columns of one kind, so that there are few.
B, C, N and K are as in fast_path.py.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.encode.feature_state import FeatureState
from features.online.value_readers import UnusualError
from features.schema.schema import Feature
from features.schema.transforms.clip import Clip
from features.schema.transforms.count import Count
from features.schema.transforms.cross import UNIT_SEPARATOR, Cross
from features.schema.transforms.floor_ln2 import LOWEST, FloorLn2
from features.schema.transforms.log1p import Log1p
from features.schema.transforms.quantile import Quantile
from features.schema.transforms.time_parts import TimePart

SECONDS_OF_HOUR, SECONDS_OF_DAY = 3600, 86_400
WEEKDAY_OF_1970 = 3  # 1 January 1970 was a Thursday, and Monday is 0 here
MARGIN = 1e-6  # of a rounded-down logarithm: NumPy's and Polars' may differ in the last bits

Numbers = NDArray[Any]
Columns = slice | list[int]


@dataclass(frozen=True)
class Values:
    """The values of a group of columns: B rows and C columns.

    Attributes:
        numbers_BC: The numbers, or the hashes of texts; any where a value is missing.
        is_null_BC: Whether each value is missing; None if none is.
        texts: The texts, column by column; None if they are numbers.
    """

    numbers_BC: Numbers
    is_null_BC: NDArray[np.bool_] | None
    texts: Sequence[str] | None = None

    @classmethod
    def of_columns(
        cls, read: Numbers | Sequence[str], is_null: list[bool] | None, num_columns: int
    ) -> "Values":
        """Return the values that a reader has read column by column.

        Args:
            read: What it has returned.
            is_null: Whether each value is missing; None if none is.
            num_columns: C.
        """
        texts = None
        if not isinstance(read, np.ndarray):
            texts, read = read, np.array(list(map(hash, read)), np.int64)
        is_null_BC = None if is_null is None else np.array(is_null).reshape(num_columns, -1).T
        return cls(read.reshape(num_columns, -1).T, is_null_BC, texts)

    def texts_of(self, column: int) -> Sequence[str]:
        """Return the values of a column as texts; those of numbers are decimal digits."""
        if self.texts is None:
            return list(map(str, self.numbers_BC[:, column].tolist()))
        num_rows = len(self.numbers_BC)
        return self.texts[column * num_rows : (column + 1) * num_rows]

    def nulls_of(self, column: int) -> list[bool]:
        """Return whether each value of a column is missing."""
        if self.is_null_BC is None:
            return [False] * len(self.numbers_BC)
        return self.is_null_BC[:, column].tolist()  # type: ignore[no-any-return]


@dataclass
class Inputs:
    """The model inputs of a request while they are made.

    Attributes:
        dense_BN: The dense features, float32.
        keys_BK: The integers that are looked up, int64; those of texts are hashes.
        is_null_BK: Whether a value is missing; None if none is.
        texts: The texts of the columns of texts, by their number in K.
    """

    dense_BN: NDArray[np.float32]
    keys_BK: NDArray[np.int64]
    is_null_BK: NDArray[np.bool_] | None = None
    texts: dict[int, Sequence[str]] = field(default_factory=dict)

    def set_null(self, columns: Columns, is_null: NDArray[np.bool_]) -> None:
        """Say of some of the K columns which of their values are missing."""
        if self.is_null_BK is None:
            self.is_null_BK = np.zeros(self.keys_BK.shape, np.bool_)
        self.is_null_BK[:, columns] = is_null


class FeatureMaker(ABC):
    """Makes the features of one transform."""

    @abstractmethod
    def make(self, values: list[Values], inputs: Inputs) -> None:
        """Make the features.

        Args:
            values: The values of each group of columns.
            inputs: Where the features are added.
        """


@dataclass
class DenseMaker(FeatureMaker):
    """It makes dense features by a function of numbers, of which missing ones are 0.

    Attributes:
        function: The function, of the transform.
        group: The number of the group of columns.
        columns: The columns, among the C of the group.
        made: The features, among the N.
    """

    function: Callable[[Numbers], Numbers]
    group: int
    columns: Columns
    made: Columns

    def make(self, values: list[Values], inputs: Inputs) -> None:
        """Make the features."""
        numbers = values[self.group].numbers_BC[:, self.columns]
        inputs.dense_BN[:, self.made] = self.function(numbers)


@dataclass
class KeyMaker(FeatureMaker):
    """It makes the keys of categorical features by a function of numbers.

    Attributes:
        function: The function of the transform; None if the values themselves are the keys.
        has_nulls: Whether a missing value is missing as a feature, too. Its key is 0.
        group: The number of the group of columns.
        columns: The columns, among the C of the group.
        made: The features, among the K columns that are looked up.
    """

    function: Callable[[Numbers], Numbers] | None
    has_nulls: bool
    group: int
    columns: Columns
    made: Columns

    def make(self, values: list[Values], inputs: Inputs) -> None:
        """Make the keys."""
        of_group = values[self.group]
        keys = of_group.numbers_BC[:, self.columns]
        if self.function is not None:
            keys = self.function(keys)
        inputs.keys_BK[:, self.made] = keys
        if self.has_nulls and of_group.is_null_BC is not None:
            is_null = of_group.is_null_BC[:, self.columns]
            inputs.set_null(self.made, is_null)
            if self.function is not None:
                inputs.keys_BK[:, self.made] *= ~is_null
        if of_group.texts is not None:
            for column, made in zip(_numbers(self.columns), _numbers(self.made), strict=True):
                inputs.texts[made] = of_group.texts_of(column)


@dataclass
class CrossMaker(FeatureMaker):
    """It makes the keys of pairs of values.

    Attributes:
        pair: The group, and the column in it, of each of the two.
        made: The feature, among the K columns that are looked up.
    """

    pair: list[tuple[int, int]]
    made: int

    def make(self, values: list[Values], inputs: Inputs) -> None:
        """Make the keys."""
        left, right = (values[group].texts_of(column) for group, column in self.pair)
        nulls = [values[group].nulls_of(column) for group, column in self.pair]
        is_null = [one or other for one, other in zip(*nulls, strict=True)]
        texts = [
            "" if null else f"{one}{UNIT_SEPARATOR}{other}"
            for one, other, null in zip(left, right, is_null, strict=True)
        ]
        inputs.texts[self.made] = texts
        inputs.keys_BK[:, self.made] = list(map(hash, texts))
        if any(is_null):
            inputs.set_null([self.made], np.array(is_null)[:, None])


def makers_of(state: FeatureState, groups: list[list[str]]) -> list[FeatureMaker]:
    """Return the makers of all features of a state.

    Args:
        state: The state.
        groups: The names of the columns of each group.

    Raises:
        UnusualError: A feature has a transform that only the batch path knows.
    """
    place = {
        name: (group, column)
        for group, names in enumerate(groups)
        for column, name in enumerate(names)
    }
    dense, keys = state.schema.dense_features, looked_up(state)
    # The features that are made together, by transform and group: their columns and their numbers.
    together: dict[tuple[str, int], tuple[Feature, list[int], list[int]]] = {}
    makers: list[FeatureMaker] = []
    for feature in state.schema.features:
        transform = feature.transform
        if isinstance(transform, Cross):
            makers.append(CrossMaker([place[name] for name in feature.of], keys.index(feature)))
            continue
        group, column = place[feature.of[0]]
        is_fitted = feature.name in state.fitted and not isinstance(transform, Count)
        name = feature.name if is_fitted else transform.model_dump_json() if transform else ""
        _, columns, made = together.setdefault((name, group), (feature, [], []))
        columns.append(column)
        is_key = feature in keys
        made.append(keys.index(feature) if is_key else dense.index(feature.name))
    for (_, group), (feature, columns, made) in together.items():
        makers.append(_maker(state, feature, group, as_slice(columns), as_slice(made)))
    return makers


def looked_up(state: FeatureState) -> list[Feature]:
    """Return the features of the K columns that are looked up."""
    features = state.schema.features
    return [
        *(feature for feature in features if feature.policy is not None),
        *(feature for feature in features if isinstance(feature.transform, Count)),
    ]


def _maker(
    state: FeatureState, feature: Feature, group: int, columns: Columns, made: Columns
) -> FeatureMaker:
    match feature.transform:
        case None | Count():
            return KeyMaker(None, True, group, columns, made)
        case Log1p():
            return DenseMaker(_log1p, group, columns, made)
        case Clip(low=low, high=high):
            return DenseMaker(lambda numbers: _clipped(numbers, low, high), group, columns, made)
        case FloorLn2():
            return KeyMaker(_floor_ln2, False, group, columns, made)
        case Quantile():
            edges = state.fitted[feature.name]["edge"].to_numpy()
            return KeyMaker(
                lambda numbers: np.searchsorted(edges, numbers.astype(np.float64), side="right"),
                True,
                group,
                columns,
                made,
            )
        case TimePart(name="hour"):
            return KeyMaker(_hour, True, group, columns, made)
        case TimePart():
            return KeyMaker(_weekday, True, group, columns, made)
    raise UnusualError


def _log1p(numbers: Numbers) -> Numbers:
    # The maximum is taken of float32, as in the transform: so is the order of the roundings.
    return np.log(np.maximum(numbers.astype(np.float32), 0) + np.float32(1))


def _clipped(numbers: Numbers, low: float, high: float) -> Numbers:
    """Limit numbers as Polars does, for which -0.0 is not below 0."""
    return np.where(numbers < low, low, np.where(numbers > high, high, numbers))


def _floor_ln2(numbers: Numbers) -> Numbers:
    squares = np.square(np.log(np.maximum(numbers, 2).astype(np.float64)))
    is_large = numbers > 2
    if (np.abs(squares - np.rint(squares)) < MARGIN)[is_large].any():
        raise UnusualError
    return np.where(is_large, np.floor(squares), np.maximum(numbers, LOWEST)).astype(np.int64)


def _hour(seconds: Numbers) -> Numbers:
    return seconds % SECONDS_OF_DAY // SECONDS_OF_HOUR


def _weekday(seconds: Numbers) -> Numbers:
    return (seconds // SECONDS_OF_DAY + WEEKDAY_OF_1970) % 7 + 1


def as_slice(numbers: list[int]) -> Columns:
    """Return consecutive numbers as a slice, which NumPy takes faster."""
    first, end = numbers[0], numbers[0] + len(numbers)
    return slice(first, end) if numbers == list(range(first, end)) else numbers


def _numbers(columns: Columns) -> Iterator[int]:
    return iter(range(columns.start, columns.stop) if isinstance(columns, slice) else columns)
