"""One more day: ids stay, old days are not touched, and the outcome is what it would have been had all days come at once."""

import shutil

import numpy as np
import polars as pl
import pytest

from common.files import DataError, read_json
from common.progress import Progress
from features.collect.stage import collect
from features.encode.feature_state import NUM_RESERVED, UNSEEN, FeatureState
from features.encode.split import SPLITS
from features.encode.stage import FEATURES, build_features
from features.encode.vocabulary_growth import Lineage
from features.ingest.stage import ingest
from features.sample.generate import write_sample
from tests.factories.support import CRITEO, make_params

NUM_DAYS, DAY_ROWS = 6, 800


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """The lines of each day."""
    path = tmp_path_factory.mktemp("log") / "log.tsv"
    with Progress("sample", None, None) as progress:
        write_sample(path, NUM_DAYS * DAY_ROWS, NUM_DAYS, 1, CRITEO, progress)
    text = path.read_text().splitlines(keepends=True)
    return [text[start : start + DAY_ROWS] for start in range(0, len(text), DAY_ROWS)]


@pytest.fixture
def log(tmp_path, lines):
    """Writes days into the log and runs the stages up to features."""
    (tmp_path / "clicks").mkdir()

    class Log:
        root, directory = tmp_path, tmp_path / "clicks"

        def write(self, *days):
            for day in days:
                (self.directory / f"day_{day}.tsv").write_text("".join(lines[day]))
            return self

        def run(self, forget_after_days=None, **changes):
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

        def content(self):
            top = self.root / FEATURES
            return {
                path.relative_to(top).as_posix(): path.read_bytes()
                for path in top.rglob("*")
                if path.is_file()
            }

        def stat(self, day, split="train"):
            found = (self.root / FEATURES / split / f"day_{day:03d}.parquet").stat()
            return found.st_mtime_ns, found.st_ino

    return Log()


def ids_of(log, day, split="train"):
    return pl.read_parquet(
        log.root / FEATURES / split / f"day_{day:03d}.parquet", columns=CRITEO.categorical
    )


def test_earlier_ids_and_days_stay(log):
    before = log.write(0, 1, 2, 3).run()
    stats = [log.stat(day) for day in range(3)]
    after = log.write(4).run()
    grown = 0
    for name in CRITEO.categorical:
        old, new = before.vocabularies[name], after.vocabularies[name]
        assert new[: len(old)].equals(old)
        grown += len(new) - len(old)
    assert grown > 0
    assert [log.stat(day) for day in range(3)] == stats
    # day 3 was validation and test, and is for training now
    files = {
        split: [path.name for path in (log.root / FEATURES / split).iterdir()] for split in SPLITS
    }
    assert sorted(files["train"]) == [f"day_{day:03d}.parquet" for day in range(4)]
    assert files["valid"] == files["test"] == ["day_004.parquet"]


def test_day_by_day_is_all_at_once(log, lines):
    log.write(0, 1, 2).run()
    for day in range(3, NUM_DAYS):
        log.write(day).run()
    step_by_step = log.content()
    for path in (log.root / FEATURES).rglob("lineage.json"):
        path.unlink()
    log.run()
    assert log.content() == step_by_step


def test_a_new_value_gets_the_next_id(log, lines):
    """Rare on each of the first days, frequent in all of them together."""
    name = CRITEO.categorical[0]
    place = CRITEO.names.index(name)
    for day in range(4):
        fields = lines[day][0].split("\t")
        log.write(day)
        changed = ["\t".join([*fields[:place], "0badcafe", *fields[place + 1 :]]), *lines[day][1:]]
        (log.directory / f"day_{day}.tsv").write_text("".join(changed))
    before = log.run()  # days 0-1 fitted, day 2 grown: three times seen
    value = int("0badcafe", 16)
    (place_of,) = np.flatnonzero(before.vocabularies[name].to_numpy() == value)
    sizes = Lineage.read(log.root / FEATURES).sizes
    assert sizes[0][0] <= place_of < sizes[1][0]
    found = [ids_of(log, day)[name][0] for day in range(3)]
    assert found == [UNSEEN, UNSEEN, place_of + NUM_RESERVED]


def test_compaction_gives_rows_back(log, capsys):
    log.write(0, 1, 2, 3).run()
    full = log.write(4).run()
    assert sum(map(sum, Lineage.read(log.root / FEATURES).last_seen.values())) == sum(
        map(len, full.vocabularies.values())
    )
    before = log.content()
    log.run()
    assert log.content() == before  # nothing is forgotten unless asked for
    capsys.readouterr()
    compact = log.run(forget_after_days=1)
    before, after = sum(full.cardinalities), sum(compact.cardinalities)
    assert f"{before - after:,} of {before:,} ids given back" in capsys.readouterr().out
    for name in CRITEO.categorical:
        old, new = full.vocabularies[name].to_list(), compact.vocabularies[name].to_list()
        last_day = pl.read_parquet(log.root / "artifacts/parquet/day_3.tsv.parquet")[name]
        assert new == [value for value in old if value in set(last_day)]
    assert sum(compact.cardinalities) < sum(full.cardinalities)
    for day in range(4):
        raw = pl.read_parquet(log.root / f"artifacts/parquet/day_{day}.tsv.parquet")
        assert compact.transform(raw).select(CRITEO.categorical).equals(ids_of(log, day))
    again = log.content()
    log.run()
    assert log.content() == again  # and the next run goes on from there
    after = log.write(5).run()
    assert all(
        after.vocabularies[name][: len(old)].equals(old)
        for name, old in compact.vocabularies.items()
    )


def test_forgetting_needs_a_state_that_grows(log):
    with pytest.raises(DataError, match="nothing to forget"):
        log.write(0, 1, 2).run(forget_after_days=1)


@pytest.mark.parametrize(
    ("delivered_again", "what"),
    [(1, "other rows"), (2, "other rows"), (None, "only 0 still are")],
    ids=[
        "a day of the first fit",
        "a day grown since, whose vocabulary the days after it built on",
        "the newest training day",
    ],
)
def test_what_was_counted_cannot_be_taken_back(log, capsys, delivered_again, what):
    log.write(0, 1, 2, 3, 4).run()
    if delivered_again is not None:
        path = log.directory / f"day_{delivered_again}.tsv"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[: DAY_ROWS // 3]))
    else:  # day 3 is the newest now, for validation and test
        (log.directory / "day_4.tsv").unlink()
    log.run()
    assert what in capsys.readouterr().out
    grown = log.content()
    shutil.rmtree(log.root / FEATURES)
    log.run()
    assert log.content() == grown  # fitted anew, on what is there


def test_a_vanished_day_leaves_its_ids(log):
    before = log.write(0, 1, 2, 3).run()
    (log.directory / "day_0.tsv").unlink()
    kept = log.stat(1)
    after = log.run()
    assert after.fingerprint == before.fingerprint
    assert log.stat(0) == kept  # the first day now is what was the second
    assert [day["name"] for day in read_json(log.root / FEATURES / "lineage.json")["days"]] == [
        "day_0.tsv",
        "day_1.tsv",
        "day_2.tsv",
    ]


@pytest.mark.parametrize("what", ["counts/C3", "state/vocabulary/C3"])
def test_a_damaged_memory_is_not_gone_on_with(log, capsys, what):
    log.write(0, 1, 2, 3).run()
    path = log.root / FEATURES / f"{what}.parquet"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1] + b"?")
    log.write(4).run()
    assert f"{path.name} is missing or not" in capsys.readouterr().out
    found = log.content()
    (log.root / FEATURES / "lineage.json").unlink()
    log.run()
    assert log.content() == found  # fitted anew


def test_a_damaged_day_is_made_again(log):
    log.write(0, 1, 2, 3).run()
    whole = log.content()
    path = log.root / FEATURES / "train/day_000.parquet"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1] + b"?")
    log.run()
    assert log.content() == whole


def test_a_log_of_one_file_becomes_one_of_day_files(log, lines):
    (log.directory / "all.tsv").write_text("".join(line for day in lines[:4] for line in day))
    log.run()
    (log.directory / "all.tsv").unlink()
    log.write(0, 1, 2, 3).run()
    grown = log.content()
    (log.root / FEATURES / "lineage.json").unlink()
    log.run()
    assert log.content() == grown


def test_other_parameters_begin_anew(log):
    log.write(0, 1, 2, 3).run()
    whole = log.content()
    log.run(features__min_count=2)
    assert len(Lineage.read(log.root / FEATURES).sizes) == 2
    log.run()
    assert log.content() == whole
