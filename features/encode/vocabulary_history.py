"""The history of the vocabularies: the days that they were grown on, and their versions.

A vocabulary version is the state of all vocabularies after the first fit, or after one more
training day was counted. Later versions only append values, so an earlier version is the present
one cut to its sizes.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path

from common.artifact import Artifact
from common.files import write_json
from features.encode.days import Day
from features.encode.feature_state import FeatureState

HISTORY = "vocabulary_history.json"
COUNTS = "counts"


@dataclass(frozen=True)
class CountedDay:
    """A training day whose values are counted in the vocabularies.

    Attributes:
        name: The name of the day.
        sha256: The hash of its rows, `Day.sha256`.
        num_rows: The number of its first rows that are counted.
        vocabulary_version: The version that gives its rows their ids.
    """

    name: str
    sha256: str
    num_rows: int
    vocabulary_version: int


@dataclass(frozen=True)
class VocabularyHistory:
    """The counted days from which the vocabularies have grown.

    Attributes:
        made_by: A hash of the code and the parameters that made the feature state.
        days: The counted days in the order in which they were counted, also those whose log file
            is gone. Empty if the vocabularies do not grow.
        version_hashes: For each version, a hash of all that its ids depend on: the first version,
            and the rows that were counted since.
        sizes: For each version, the number of values of each vocabulary, in the schema's order.
        num_distinct: For each embedding table, the number of distinct values counted so far, rare
            ones included; None under the policy `hash`.
        last_seen: For each embedding table and counted day, the number of values of the vocabulary
            whose last occurrence was on this day.
    """

    made_by: str
    days: list[CountedDay] = field(default_factory=list)
    version_hashes: list[str] = field(default_factory=list)
    sizes: list[list[int]] = field(default_factory=list)
    num_distinct: dict[str, int | None] = field(default_factory=dict)
    last_seen: dict[str, list[int]] = field(default_factory=dict)

    @classmethod
    def read(cls, features: Artifact) -> "VocabularyHistory | None":
        """Read the history of features; None if they have none that this code can read.

        Raises:
            DataError: The file is damaged.
        """
        value = features.read_json(HISTORY) if HISTORY in features.files else {}
        if value.keys() != {one.name for one in fields(cls)}:
            return None
        return cls(**{**value, "days": [CountedDay(**day) for day in value["days"]]})

    def write(self, directory: Path) -> None:
        """Write the history into a folder of features."""
        write_json(directory / HISTORY, asdict(self))

    @cached_property
    def _places(self) -> dict[str, int]:
        """The index of each counted day in `days`, by the hash of its rows."""
        places: dict[str, int] = {}
        for index, counted in enumerate(self.days):
            places.setdefault(counted.sha256, index)
        return places

    def find(self, day: Day) -> CountedDay | None:
        """Return the record of a day by its rows; None if the day is not counted."""
        index = self._places.get(day.sha256)
        return None if index is None else self.days[index]

    def num_counted(self, day: Day) -> int:
        """Return the number of first rows of a day that are counted."""
        counted = self.find(day)
        return counted.num_rows if counted else 0

    def starting_with(self, state: FeatureState) -> "VocabularyHistory":
        """Return the history in which this state is the first version, for all counted days."""
        counted = [(day.sha256, day.num_rows) for day in self.days]
        return replace(
            self,
            days=[replace(day, vocabulary_version=0) for day in self.days],
            version_hashes=[_hash([state.fingerprint, counted])],
            sizes=[[len(values) for values in state.vocabularies.values()]],
        )

    def with_days(self, new_days: list[Day]) -> "VocabularyHistory":
        """Return the history with one more version for each day, after all its rows were counted.

        The sizes of the new versions are left out; they are known when the values are counted.
        """
        days, hashes, places = [*self.days], [*self.version_hashes], dict(self._places)
        for day in new_days:
            entry = CountedDay(day.name, day.sha256, day.num_rows, len(hashes))
            index = places.setdefault(day.sha256, len(days))
            num_counted = 0
            if index < len(days):
                num_counted, days[index] = days[index].num_rows, entry
            else:
                days.append(entry)
            hashes.append(_hash([hashes[-1], day.sha256, num_counted, day.num_rows]))
        return replace(self, days=days, version_hashes=hashes)

    def index_of(self, day: Day) -> int:
        """Return the index of a counted day in `days`."""
        return self._places[day.sha256]


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
