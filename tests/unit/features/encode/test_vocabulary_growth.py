"""The growth of vocabularies by one more day.

Ids keep their meaning, the files of earlier days are not written again, and the result is the same
as if all days had come at once.
"""

import shutil
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
import pytest

from common.artifact import Artifact, write_manifest
from common.files import DataError, read_json
from common.layout import FEATURES
from common.progress import Progress
from features.collect.stage import collect
from features.dataset.stage import build_features
from features.encode import day_groups
from features.encode.feature_state import NUM_RESERVED, UNSEEN, FeatureState
from features.encode.split import SPLITS
from features.encode.vocabulary import forget_values, newly_frequent
from features.encode.vocabulary_history import HISTORY, VocabularyHistory
from features.ingest.stage import ingest
from features.sample.generate import write_sample
from features.value_counts import as_one_day
from tests.factories.support import CRITEO, make_params

NUM_DAYS, DAY_ROWS = 6, 800


class DailyLog:
    """A log with a file for each day, and the stages up to features.

    Args:
        root: The project folder.
        lines: The lines of each day.
    """

    def __init__(self, root: Path, lines: list[list[str]]) -> None:
        self.root, self.lines = root, lines
        self.directory = root / "clicks"
        self.directory.mkdir()

    def write(self, *days: int) -> Self:
        """Write the files of some days into the log."""
        for day in days:
            (self.directory / f"day_{day}.tsv").write_text("".join(self.lines[day]))
        return self

    def run(self, forget_after_days: int | None = None, **changes: Any) -> FeatureState:
        """Run the stages with the log as it is, and return the feature state."""
        split = {"by": "days", "valid_days": 0.5, "test_days": 0.5, "test_first": False}
        values = {
            "features__min_count": 3,
            "features__fit_days": 2,
            "features__split": split,
            **changes,
        }
        params = make_params(data__source="clicks", **values)
        for stage in (collect, ingest):
            stage(params, self.root)
        build_features(params, self.root, forget_after_days)
        return FeatureState.load(self.root / FEATURES / "state")

    def history(self) -> VocabularyHistory:
        """Read the history of the vocabularies."""
        history = VocabularyHistory.read(Artifact.open(self.root / FEATURES))
        assert history is not None
        return history

    def forget_history(self) -> None:
        """Remove the history, so that the next run fits the state from scratch."""
        (self.root / FEATURES / HISTORY).unlink()
        write_manifest(self.root / FEATURES, {})

    def content(self) -> dict[str, bytes]:
        """Read all files of the features."""
        top = self.root / FEATURES
        return {
            path.relative_to(top).as_posix(): path.read_bytes()
            for path in top.rglob("*")
            if path.is_file()
        }

    def ids_of(self, day: int) -> pl.DataFrame:
        """Read the ids of a training day."""
        return pl.read_parquet(self._file(day), columns=CRITEO.categorical)

    def stat(self, day: int) -> tuple[int, int]:
        """Return the modification time and the inode of the file of a training day."""
        stat = self._file(day).stat()
        return stat.st_mtime_ns, stat.st_ino

    def _file(self, day: int) -> Path:
        return self.root / FEATURES / "train" / f"day_{day:03d}.parquet"


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """The lines of each day."""
    path = tmp_path_factory.mktemp("log") / "log.tsv"
    with Progress("sample", None, None) as progress:
        write_sample(path, NUM_DAYS * DAY_ROWS, NUM_DAYS, 1, CRITEO, progress)
    text = path.read_text().splitlines(keepends=True)
    return [text[start : start + DAY_ROWS] for start in range(0, len(text), DAY_ROWS)]


@pytest.fixture
def log(tmp_path: Path, lines: list[list[str]]) -> DailyLog:
    return DailyLog(tmp_path, lines)


def damage(path: Path) -> None:
    """Replace a file by a damaged copy, and leave other hard links to it as they are."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1] + b"?")


def counts_of(*rows: tuple[str, int, int]) -> pl.DataFrame:
    """Return counts from rows of value, count and last day."""
    dtypes = {"value": pl.String, "count": pl.UInt64, "last_day": pl.UInt32}
    return pl.DataFrame(rows, schema=dtypes, orient="row")


def test_frequent_new_values_are_appended() -> None:
    counts = counts_of(("a", 9, 0), ("b", 1, 0), ("e", 5, 0), ("f", 2, 0))
    later = counts_of(("a", 1, 1), ("b", 4, 1), ("c", 2, 1), ("d", 7, 1))
    new = newly_frequent(counts, as_one_day(later), 3)
    assert new.rows() == [("d", 0, 7), ("b", 0, 5)]


def test_values_that_did_not_occur_lately_are_forgotten() -> None:
    counts = counts_of(("a", 9, 0), ("b", 5, 2), ("c", 1, 1), ("d", 7, 1))
    values, recent = forget_values(pl.Series("value", ["a", "d", "b"]), counts, 1)
    assert values.to_list() == ["d", "b"]
    assert recent["value"].to_list() == ["b", "c", "d"]


def test_earlier_ids_and_days_stay(log: DailyLog) -> None:
    before = log.write(0, 1, 2, 3).run()
    stats = [log.stat(day) for day in range(3)]
    after = log.write(4).run()
    num_new = 0
    for name in CRITEO.categorical:
        old, new = before.vocabularies[name], after.vocabularies[name]
        assert new[: len(old)].equals(old)
        num_new += len(new) - len(old)
    assert num_new > 0
    assert [log.stat(day) for day in range(3)] == stats
    # Day 3 was for validation and test before, and is for training now.
    files = {
        split: [path.name for path in (log.root / FEATURES / split).iterdir()] for split in SPLITS
    }
    assert sorted(files["train"]) == [f"day_{day:03d}.parquet" for day in range(4)]
    assert files["valid"] == files["test"] == ["day_004.parquet"]


def test_day_by_day_is_the_same_as_all_at_once(log: DailyLog) -> None:
    log.write(0, 1, 2).run()
    for day in range(3, NUM_DAYS):
        log.write(day).run()
    step_by_step = log.content()
    log.forget_history()
    log.run()
    assert log.content() == step_by_step


def test_a_new_value_gets_the_next_id(log: DailyLog) -> None:
    """A value that is rare on each of the first days becomes frequent on the third."""
    name = CRITEO.categorical[0]
    column = CRITEO.names.index(name)
    for day in range(4):
        fields = log.lines[day][0].split("\t")
        changed = "\t".join([*fields[:column], "0badcafe", *fields[column + 1 :]])
        (log.directory / f"day_{day}.tsv").write_text("".join([changed, *log.lines[day][1:]]))
    state = log.run()  # days 0 and 1 are fitted together, and day 2 is the growth
    value = int("0badcafe", 16)
    (position,) = np.flatnonzero(state.vocabularies[name].to_numpy() == value)
    sizes = log.history().sizes
    assert sizes[0][0] <= position < sizes[1][0]
    ids = [log.ids_of(day)[name][0] for day in range(3)]
    assert ids == [UNSEEN, UNSEEN, position + NUM_RESERVED]


def test_compaction_removes_ids(log: DailyLog, capsys: pytest.CaptureFixture[str]) -> None:
    log.write(0, 1, 2, 3).run()
    full = log.write(4).run()
    assert sum(map(sum, log.history().last_seen.values())) == sum(
        map(len, full.vocabularies.values())
    )
    before = log.content()
    log.run()
    assert log.content() == before  # values are only forgotten on request
    capsys.readouterr()
    compact = log.run(forget_after_days=1)
    num_before, num_after = sum(full.cardinalities), sum(compact.cardinalities)
    assert num_after < num_before
    removed = f"{num_before - num_after:,} of {num_before:,} ids removed"
    assert removed in capsys.readouterr().out
    for name in CRITEO.categorical:
        old, new = full.vocabularies[name].to_list(), compact.vocabularies[name].to_list()
        last_day = pl.read_parquet(log.root / "artifacts/parquet/day_3.tsv.parquet")[name]
        assert new == [value for value in old if value in set(last_day)]
    for day in range(4):
        raw = pl.read_parquet(log.root / f"artifacts/parquet/day_{day}.tsv.parquet")
        assert compact.encode(raw).select(CRITEO.categorical).equals(log.ids_of(day))
    compacted = log.content()
    log.run()
    assert log.content() == compacted  # the next run grows the compacted state
    after = log.write(5).run()
    assert all(
        after.vocabularies[name][: len(old)].equals(old)
        for name, old in compact.vocabularies.items()
    )


def test_forgetting_needs_a_state_that_grows(log: DailyLog) -> None:
    with pytest.raises(DataError, match="nothing to forget"):
        log.write(0, 1, 2).run(forget_after_days=1)


@pytest.mark.parametrize(
    ("changed_day", "reason"),
    [(1, "other rows"), (2, "other rows"), (None, "only 0 still are")],
    ids=[
        "a day of the first fit has other rows",
        "a day of the growth has other rows",
        "the newest training day is for validation",
    ],
)
def test_counted_days_that_change_lead_to_a_fit_from_scratch(
    log: DailyLog, capsys: pytest.CaptureFixture[str], changed_day: int | None, reason: str
) -> None:
    log.write(0, 1, 2, 3, 4).run()
    if changed_day is not None:
        path = log.directory / f"day_{changed_day}.tsv"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[: DAY_ROWS // 3]))
    else:  # day 3 is the newest day now, for validation and test
        (log.directory / "day_4.tsv").unlink()
    log.run()
    assert reason in capsys.readouterr().out
    content = log.content()
    shutil.rmtree(log.root / FEATURES)
    log.run()
    assert log.content() == content


def test_a_day_whose_file_is_gone_leaves_its_ids(log: DailyLog) -> None:
    before = log.write(0, 1, 2, 3).run()
    (log.directory / "day_0.tsv").unlink()
    stat = log.stat(1)
    after = log.run()
    assert after.fingerprint == before.fingerprint
    assert log.stat(0) == stat  # the second day is the first one now
    assert [day.name for day in log.history().days] == ["day_0.tsv", "day_1.tsv", "day_2.tsv"]


@pytest.mark.parametrize("name", ["counts/C3", "state/vocabulary/C3"])
def test_a_damaged_state_is_fitted_from_scratch(
    log: DailyLog, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    log.write(0, 1, 2, 3).run()
    path = log.root / FEATURES / f"{name}.parquet"
    damage(path)
    log.write(4).run()
    out = capsys.readouterr().out
    assert path.name in out
    assert "vocabularies are fitted from scratch" in out
    content = log.content()
    log.forget_history()
    log.run()
    assert log.content() == content


def test_a_history_of_another_version_is_fitted_from_scratch(log: DailyLog) -> None:
    log.write(0, 1, 2, 3).run()
    content = log.content()
    path = log.root / FEATURES / HISTORY
    path.write_text(path.read_text().replace("made_by", "made_from"))
    log.run()
    assert log.content() == content


def test_a_damaged_day_is_encoded_again(log: DailyLog) -> None:
    log.write(0, 1, 2, 3).run()
    content = log.content()
    damage(log.root / FEATURES / "train/day_000.parquet")
    log.run()
    assert log.content() == content


def test_a_log_of_one_file_becomes_one_of_day_files(log: DailyLog) -> None:
    text = "".join(line for day in log.lines[:4] for line in day)
    (log.directory / "all.tsv").write_text(text)
    log.run()
    assert read_json(log.root / FEATURES / "data.json")["vocabulary"] is None
    (log.directory / "all.tsv").unlink()
    log.write(0, 1, 2, 3).run()
    grown = log.content()
    log.forget_history()
    log.run()
    assert log.content() == grown


def test_other_parameters_lead_to_a_fit_from_scratch(log: DailyLog) -> None:
    log.write(0, 1, 2, 3).run()
    content = log.content()
    log.run(features__min_count=2)
    assert len(log.history().sizes) == 2
    log.run()
    assert log.content() == content


def test_small_days_in_groups_are_the_same_as_alone(
    tmp_path: Path, lines: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Days of 40 rows, counted in groups of up to 100 rows and one after the other."""
    sizes = {0: 40, 1: 40, 2: 300, 3: 40, 4: 40, 5: 40, 6: 40, 7: 40, 8: 40, 9: 40}
    rows = iter(line for of_day in lines for line in of_day)
    of_days = [list(islice(rows, num_rows)) for num_rows in sizes.values()]
    files = {}
    for name, small, in_memory in (("groups", 40, 100), ("alone", 0, 0)):
        monkeypatch.setattr(day_groups, "SMALL_FILE_ROWS", small)
        monkeypatch.setattr(day_groups, "MAX_ROWS_IN_MEMORY", in_memory)
        (tmp_path / name).mkdir()
        log = DailyLog(tmp_path / name, of_days).write(*sizes)
        log.run(features__fit_days=1)
        features = Artifact.open(log.root / FEATURES)
        files[name] = {name: listed.sha256 for name, listed in features.files.items()}
    assert files["groups"] == files["alone"]
    assert [day.num_rows for day in log.history().days] == [40, 40, 300, 40, 40, 40, 40, 40, 40]
