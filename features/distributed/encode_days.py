"""The job that encodes days and writes their files."""

from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from features.dataset.writer import DayToEncode, WrittenDay, write_days
from features.distributed.exchange import Exchange
from features.distributed.jobs import Job, PackedCodes
from features.encode.days import Day
from features.encode.feature_state import FeatureState
from features.encode.split import SPLITS


@dataclass(frozen=True)
class PackedDay:
    """A day to encode, as it is sent to a worker; the attributes are those of `DayToEncode`."""

    number: int
    day: Day
    codes: PackedCodes
    sizes: list[int]
    key: str

    def unpack(self, exchange: Exchange, folder: Path) -> DayToEncode:
        """Return the day to encode, with shards that this machine can read."""
        day = exchange.local_day(self.day, folder)
        return DayToEncode(self.number, day, self.codes.unpack(), self.sizes, self.key)


@dataclass(frozen=True, kw_only=True)
class EncodeDays(Job):
    """Encodes days, and puts their files into the exchange, with their names in artifacts/features.

    Attributes:
        state: The files of the feature state in the exchange, by their names in its folder.
        fingerprint: The fingerprint of the state.
        days: The days.
    """

    state: dict[str, str]
    fingerprint: str
    days: list[PackedDay]

    @property
    def num_rows(self) -> int:
        """The number of rows of the days."""
        return sum(packed.day.num_rows for packed in self.days)

    def work(self) -> list[WrittenDay]:
        """Encode, and return the days in their order."""
        state = _load_state(self.exchange, tuple(sorted(self.state.items())), self.fingerprint)
        with self.exchange.work_folder() as folder:
            for split in SPLITS:
                (folder / split).mkdir()
            days = [packed.unpack(self.exchange, folder / "shards") for packed in self.days]
            with ExitStack() as stack:
                for one in days:
                    stack.enter_context(one.day.parquet.unchanged())
                written_days = list(write_days(state, days, folder, _ignore_progress))
            for written in written_days:
                for name in written.listed:
                    self.exchange.put(folder / name, name)
        return written_days


@lru_cache(maxsize=1)  # the jobs of a run have the same state, whose tables of ids are large
def _load_state(
    exchange: Exchange, files: tuple[tuple[str, str], ...], fingerprint: str
) -> FeatureState:
    with exchange.work_folder() as folder:
        for name, name_in_exchange in files:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with exchange.open(name_in_exchange) as file:
                path.write_bytes(file.read())
        state = FeatureState.load(folder, remedy="run the features stage again")
    assert state.fingerprint == fingerprint
    return state


def _ignore_progress(num_rows: int) -> None:
    """Ignore the progress within a job."""
