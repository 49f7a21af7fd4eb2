"""Served traffic: the figures against a count by hand, and what happens with odd keys and files."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from common.artifact import Artifact, write_manifest
from common.files import DataError
from features.encode.feature_state import FeatureState
from features.quality.drift import psi
from features.quality.encoded_counts import EncodedCounts
from serving.request_log import SHADOW
from tests.factories.nightly_runs import flip
from tests.factories.served_traffic import (
    DAY_S,
    KEY,
    NOON,
    SCHEMA,
    VERSION,
    Record,
    Server,
    as_lines,
    make_records,
    state_for,
    write_log,
)
from training.inference.input_logs import find_inputs
from training.served.figures import ServedFigures, VersionFigures
from training.served.known_models import KnownModels
from training.served.request_files import find_request_files
from training.served.traffic import MAX_COMPARED, compare_traffic
from training.served.training_rows import TrainingRows


class Models(KnownModels):
    """The feature states of a test's versions."""

    def __init__(self, states: dict[str, FeatureState]) -> None:
        super().__init__([])
        self.states = states

    def state_of(self, version: str) -> FeatureState:
        return self.states[version] if version in self.states else super().state_of(version)


def compare(
    root: Path,
    records: list[Record] | None = None,
    states: dict[str, FeatureState] | None = None,
    *,
    training: TrainingRows | None = None,
    max_compared: int = MAX_COMPARED,
    log: Path | None = None,
) -> ServedFigures:
    """Compare the request log root/requests with a log of these rows."""
    path = log or write_log(root / "log.jsonl", records or [])
    files, damaged = find_request_files(root / "requests")
    with find_inputs([path]).open() as logs:
        return compare_traffic(
            files,
            damaged,
            logs,
            SCHEMA,
            KEY,
            Models(states or {}),
            training,
            short_rows="quarantine",
            num_rounds=50,
            max_compared=max_compared,
        )


def only(figures: ServedFigures) -> VersionFigures:
    (one,) = figures.versions
    return one


def make_scores(records: list[Record]) -> list[float]:
    """Return scores that are better than chance."""
    rng = np.random.default_rng(5)
    return [float(0.2 + 0.3 * one["clicked"] + 0.2 * rng.random()) for one in records]


def write_training(root: Path, state: FeatureState, records: list[Record]) -> TrainingRows:
    """Write artifacts/features whose training rows are these."""
    folder = root / "features"
    (folder / "train").mkdir(parents=True)
    state.save(folder / "state")
    path = write_log(root / "train.jsonl", records)
    frame = state.encode(read_typed(path))
    frame.write_parquet(folder / "train/day_000.parquet", row_group_size=100)
    write_manifest(folder, {})
    return TrainingRows(Artifact.open(folder))


def read_typed(path: Path) -> pl.DataFrame:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    dtypes = {"clicked": pl.UInt8, "time": pl.Int64, "key": pl.String, "site": pl.String}
    return pl.DataFrame([{name: row[name] for name in dtypes} for row in rows], schema=dtypes)


def test_the_metrics_are_those_of_the_joined_rows(tmp_path: Path) -> None:
    """The log has rows that were not served; of the served ones it lacks ten."""
    records = make_records(400)
    served, scores = records[:300], make_scores(records[:300])
    Server(tmp_path / "requests", state_for(records)).serve(served, scores, per_request=3)
    figures = compare(tmp_path, records[10:])
    one = only(figures)
    assert (one.num_rows, one.num_served, one.num_compared, one.num_joined) == (300, 300, 300, 290)
    assert one.mean_score == pytest.approx(np.mean(scores), rel=1e-6)
    assert one.joined_share == 290 / 300
    assert (figures.num_log_rows, figures.num_bad_rows, figures.num_files) == (390, 0, 1)
    labels, p = np.array([row["clicked"] for row in served[10:]]), np.float32(scores[10:])
    metrics = one.metrics
    assert metrics
    assert metrics.label_rate == pytest.approx(labels.mean())
    assert metrics.mean_score == pytest.approx(p.mean(), rel=1e-6)
    assert metrics.calibration_ratio == pytest.approx(p.sum() / labels.sum(), rel=1e-6)
    assert metrics.calibration_ratio_low is not None
    assert metrics.calibration_ratio_low < p.sum() / labels.sum()
    loss = -np.where(labels == 1, np.log(p), np.log(1 - p)).mean()
    assert metrics.logloss == pytest.approx(loss, rel=1e-5)
    wins = np.sign(p[labels == 1][:, None] - p[labels == 0][None, :])
    assert metrics.auc == pytest.approx((wins.mean() + 1) / 2, rel=1e-6)


def test_the_order_of_the_log_does_not_matter(tmp_path: Path) -> None:
    records = make_records(200)
    Server(tmp_path / "requests", state_for(records)).serve(records, make_scores(records))
    assert only(compare(tmp_path, records)) == only(compare(tmp_path, records[::-1]))


def test_versions_and_roles_have_figures_of_their_own(tmp_path: Path) -> None:
    """A new version comes in the middle of the day, and a third one scores in the shadow."""
    records = make_records(300)
    state, folder = state_for(records), tmp_path / "requests"
    first, second = records[:100], records[100:]
    Server(folder, state).serve(first, [0.25] * 100)
    Server(folder, state, "b" * 12).serve(second, [0.3] * 200, NOON + 1000)
    Server(folder, state, "c" * 12, SHADOW).serve(records, [0.9] * 300, per_request=30)
    figures = compare(tmp_path, records, {VERSION: state, "b" * 12: state, "c" * 12: state})
    found = [(one.version[0], one.role, one.num_joined) for one in figures.versions]
    assert found == [("b", "answer", 200), ("a", "answer", 100), ("c", "shadow", 300)]
    assert figures.main is figures.versions[0]
    clicks = sum(row["clicked"] for row in second)
    assert figures.main.metrics
    assert figures.main.metrics.calibration_ratio == pytest.approx(60 / clicks, rel=1e-6)


def test_the_last_row_of_a_key_counts(tmp_path: Path) -> None:
    """The client sent its requests twice; the second answers are another day's."""
    records = make_records(50)
    server = Server(tmp_path / "requests", state_for(records))
    server.serve(records, [0.9] * 50, NOON + DAY_S)
    server.serve(records, [0.1] * 50, NOON)
    one = only(compare(tmp_path, records))
    assert (one.num_rows, one.num_compared, one.num_repeated, one.num_joined) == (100, 50, 50, 50)
    assert one.metrics
    assert one.metrics.mean_score == pytest.approx(0.9)


def test_keys_that_the_log_has_twice_are_not_joined(tmp_path: Path) -> None:
    records = make_records(60)
    Server(tmp_path / "requests", state_for(records)).serve(records, [0.5] * 60)
    clicked = [{**record, "clicked": 1} for record in records[:5]]
    one = only(compare(tmp_path, [*records, *clicked]))
    assert (one.num_joined, one.num_ambiguous) == (55, 5)


def test_rows_without_a_key_are_counted_on_both_sides(tmp_path: Path) -> None:
    records = make_records(30)
    without = [{**record, KEY: None} for record in records]
    server = Server(tmp_path / "requests", state_for(records))
    server.serve([*records[:20], *without[20:]], [0.5] * 30)
    figures = compare(tmp_path, [*without[:5], *records[5:]])
    one = only(figures)
    assert (one.num_without_key, one.num_compared, one.num_joined) == (10, 20, 15)
    assert figures.num_log_rows_without_key == 5


def test_a_request_id_can_be_the_key(tmp_path: Path) -> None:
    records = make_records(20)
    Server(tmp_path / "requests", state_for(records)).serve(
        records, make_scores(records), with_keys=False
    )
    by_request = [{**record, KEY: f"request {k}"} for k, record in enumerate(records)]
    assert only(compare(tmp_path, by_request)).num_joined == 20


def test_rows_that_the_client_changed_are_found_by_column(tmp_path: Path) -> None:
    """The client sends another site than it logs, and its count is one too low in some rows."""
    records = make_records(100)
    sent = [
        {**record, "site": "elsewhere" if k < 25 else record["site"], "time": record["time"] - 1}
        if k < 40
        else record
        for k, record in enumerate(records)
    ]
    state = state_for(records)
    Server(tmp_path / "requests", state).serve(sent, [0.5] * 100)
    figures = compare(tmp_path, records, {VERSION: state})
    skew = {column.name: column.skew for column in only(figures).columns}
    same = sum(record["time"] <= 0 for record in records[:40])  # log1p takes both as 0
    assert skew == {"time": (40 - same) / 100, "key": 0, "site": 0.25}
    assert any("time was served with another value than the log" in w for w in figures.warnings)


def test_rows_that_are_logged_as_they_were_sent_have_no_skew(tmp_path: Path) -> None:
    records = make_records(100)
    odd = [{**records[0], "site": None, "key": "new", KEY: "odd"}]
    state = state_for(records, min_count=3)
    Server(tmp_path / "requests", state).serve([*records, *odd], [0.5] * 101)
    figures = compare(tmp_path, [*records, *odd], {VERSION: state})
    assert {column.skew for column in only(figures).columns} == {0}
    assert only(figures).skew is None


def test_drift_is_the_psi_to_the_training_rows(tmp_path: Path) -> None:
    train, served = make_records(2000), make_records(1500, seed=2, first=5000)
    served = [{**row, "site": "s0" if k % 2 else row["site"]} for k, row in enumerate(served)]
    served[:300] = [{**row, "key": "never seen"} for row in served[:300]]
    state = state_for(train)
    Server(tmp_path / "requests", state).serve(served, [0.5] * len(served), per_request=50)
    training = write_training(tmp_path, state, train)
    one = only(compare(tmp_path, served, {VERSION: state}, training=training))
    columns = {column.name: column for column in one.columns}
    assert columns["key"].unseen == 0.2
    assert columns["key"].train_unseen == 0
    assert one.unseen
    assert one.unseen.column == "key"
    assert columns["time"].unseen is None
    assert columns["time"].drift == 0
    assert columns["key"].drift is not None
    assert columns["key"].drift < 0.02

    counts = [EncodedCounts(state), EncodedCounts(state)]
    for count, rows in zip(counts, (served, train), strict=True):
        count.add(state.encode(read_typed(write_log(tmp_path / "rows.jsonl", rows))))
    sites = [np.zeros(5, np.int64), np.zeros(5, np.int64)]
    for count, rows in zip(sites, (served, train), strict=True):
        for row in rows:
            count[int(row["site"][1:])] += 1
    assert one.drift
    assert (one.drift.column, one.drift.value) == ("site", counts[0].drift_from(counts[1], "site"))
    # The bins of five ids are five, whatever their order is.
    assert one.drift.value == pytest.approx(psi(*sites), rel=1e-9)


def test_training_rows_are_counted_as_the_served_version_encodes_them(tmp_path: Path) -> None:
    """The vocabularies have grown since: what came later was unseen for the served version."""
    records = make_records(400)
    later = state_for([*records, *({**row, "key": "late"} for row in records[:50])])
    values = later.vocabularies["key"]
    order = [*values.filter(values != "late"), "late"]
    later.vocabularies["key"] = pl.Series("value", order)
    state = later.truncated([len(order) - 1, len(later.vocabularies["site"])])
    state = FeatureState(state.schema, state.layout, state.vocabularies, state.fitted)
    train = [*records, *({**row, "key": "late"} for row in records[:100])]
    training = write_training(tmp_path, later, train)
    counts = training.counts_of(state)
    assert counts.num_rows == 500
    assert counts.unseen("key") == 0.2
    other = FeatureState(
        state.schema, "frequency", {**state.vocabularies, "key": values.reverse()}, {}
    )
    with pytest.raises(DataError, match="its vocabularies are not those of artifacts/features"):
        training.counts_of(other)


def test_a_large_training_split_is_sampled_evenly(tmp_path: Path) -> None:
    records = make_records(1000)
    state = state_for(records)
    write_training(tmp_path, state, records)
    sample = TrainingRows(Artifact.open(tmp_path / "features"), max_rows=300)
    assert sample.counts_of(state).num_rows == 300  # 3 of 10 row groups


def test_a_version_without_its_bundle_is_joined_all_the_same(tmp_path: Path) -> None:
    records = make_records(40)
    Server(tmp_path / "requests", state_for(records)).serve(records, [0.5] * 40)
    one = only(compare(tmp_path, records))
    assert (one.num_joined, one.columns, one.drift, one.skew) == (40, [], None, None)
    assert one.notes == [
        "its bundle is not at hand, so neither drift nor skew is known (--model names it)"
    ]


def test_a_bundle_of_other_features_is_noticed(tmp_path: Path) -> None:
    """The version is right and the bundle is not: neither ids nor columns are used."""
    records = make_records(40)
    Server(tmp_path / "requests", state_for(records)).serve(records, [0.5] * 40)
    few = state_for([records[0]])
    one = only(compare(tmp_path, records, {VERSION: few}))
    (note,) = one.notes
    assert note.startswith("the request log has other features than its bundle (key: an id")
    assert (one.num_joined, one.columns) == (40, [])


def test_the_log_lacks_a_column_of_the_served_version(tmp_path: Path) -> None:
    records = make_records(40)
    state = state_for(records)
    Server(tmp_path / "requests", state).serve(records, [0.5] * 40)
    values = SCHEMA.model_dump(by_alias=True)
    values["columns"][2]["names"].append("gone")
    wider = FeatureState(
        type(SCHEMA).model_validate(values),
        state.layout,
        state.vocabularies | {"gone": state.vocabularies["site"]},
        {},
    )
    one = only(compare(tmp_path, records, {VERSION: wider}))
    assert one.num_joined == 40
    assert one.notes[0].startswith("the request log has other features")


def test_damaged_files_are_named_and_the_others_are_read(tmp_path: Path) -> None:
    records = make_records(60)
    server = Server(tmp_path / "requests", state_for(records))
    for k in range(3):
        part = records[20 * k : 20 * k + 20]
        server.serve(part, [0.5] * 20, NOON + DAY_S * k)
    first, second, _ = sorted((tmp_path / "requests").glob("*/*.parquet"))
    first.write_bytes(first.read_bytes()[:-20])
    flip(second, 100)
    folder = second.parent
    pl.DataFrame({"a": [1]}).write_parquet(folder / "foreign.parquet")
    (folder / ".half.parquet.tmp").write_text("being written")
    (folder / "notes.txt").write_text("no file of the log")
    figures = compare(tmp_path, records)
    assert sum(one.num_rows for one in figures.versions) in (20, 40)  # a page may still be read
    assert any(str(first) in line for line in figures.damaged)
    assert any("foreign.parquet: format none found" in line for line in figures.damaged)
    assert all(line.startswith("request log: ") for line in figures.warnings[:2])


def test_values_that_no_server_writes_are_damage(tmp_path: Path) -> None:
    records = make_records(10)
    Server(tmp_path / "requests", state_for(records)).serve(records, [0.5] * 10)
    (path,) = (tmp_path / "requests").glob("*/*.parquet")
    table = pl.read_parquet(path, glob=False)
    metadata = pl.read_parquet_metadata(path)
    for column, value in (("score", 1.5), ("score", float("nan")), ("row", None)):
        wrong = table.with_columns(pl.lit(value, table.schema[column]).alias(column))
        wrong.write_parquet(path, metadata={k: v for k, v in metadata.items() if "click" in k})
        (line,) = compare(tmp_path, records).damaged
        assert line.endswith("it has a null, or a score that is not between 0 and 1")


def test_days_are_chosen(tmp_path: Path) -> None:
    records = make_records(10)
    server = Server(tmp_path / "requests", state_for(records))
    for k in range(3):
        server.serve(records, [0.5] * 10, NOON + DAY_S * k)
    (tmp_path / "requests/other").mkdir()
    days = [path.parent.name for path in sorted((tmp_path / "requests").glob("*/*.parquet"))]
    assert days == ["2026-03-01", "2026-03-02", "2026-03-03"]
    files, _ = find_request_files(tmp_path / "requests", date(2026, 3, 2), date(2026, 3, 2))
    assert [one.path.parent.name for one in files] == ["2026-03-02"]


@pytest.mark.parametrize("make", [False, True])
def test_a_folder_without_a_request_log(tmp_path: Path, make: bool) -> None:
    if make:
        (tmp_path / "requests/2026").mkdir(parents=True)
    with pytest.raises(DataError, match=r"no request log.*name the folder that `clickmill serve"):
        find_request_files(tmp_path / "requests")


def test_a_share_of_the_keys_is_compared_where_there_are_too_many(tmp_path: Path) -> None:
    """All rows are counted; those that are joined are chosen by their keys."""
    records = make_records(2000)
    scores = make_scores(records)
    server = Server(tmp_path / "requests", state_for(records))
    server.serve(records, scores, per_request=50)
    one = only(compare(tmp_path, records, max_compared=600))
    assert one.num_rows == 2000
    assert one.mean_score == pytest.approx(np.mean(scores), rel=1e-6)
    assert 400 < one.num_compared < 600  # a quarter of 2,000
    assert one.num_joined == one.num_compared
    assert one == only(compare(tmp_path, records[::-1], max_compared=600))


def test_a_sampled_log_says_how_much_was_served(tmp_path: Path) -> None:
    records = make_records(800)
    server = Server(tmp_path / "requests", state_for(records), fraction=0.25)
    server.serve(records, [0.5] * 800)
    one = only(compare(tmp_path, records))
    assert 140 < one.num_rows < 260  # binomial: five standard deviations
    assert one.num_served == 4 * one.num_rows


def test_a_key_that_no_row_has_is_a_mistake(tmp_path: Path) -> None:
    records = make_records(20)
    Server(tmp_path / "requests", state_for(records)).serve(records, [0.5] * 20)
    without: list[Any] = [{k: v for k, v in row.items() if k != KEY} for row in records]
    with pytest.raises(DataError, match="--key impression: none of the first 20 rows of"):
        compare(tmp_path, without)


def test_a_log_without_labels_is_refused(tmp_path: Path) -> None:
    records = make_records(20)
    Server(tmp_path / "requests", state_for(records)).serve(records, [0.5] * 20)
    without: list[Any] = [{k: v for k, v in row.items() if k != "clicked"} for row in records]
    with pytest.raises(DataError, match="has no label; name a log with labels"):
        compare(tmp_path, without)


def test_bad_rows_of_the_log_are_counted(tmp_path: Path) -> None:
    records = make_records(20)
    Server(tmp_path / "requests", state_for(records)).serve(records, [0.5] * 20)
    path = tmp_path / "log.jsonl"
    path.write_bytes(as_lines(records) + b"{broken\n")
    figures = compare(tmp_path, log=path)
    assert (figures.num_log_rows, figures.num_bad_rows) == (20, 1)


def test_a_low_share_of_joined_rows_is_a_warning(tmp_path: Path) -> None:
    records = make_records(20)
    Server(tmp_path / "requests", state_for(records)).serve(records, [0.5] * 20)
    figures = compare(tmp_path, make_records(20, first=15))
    assert any("only 5 of 20 served rows have a label" in line for line in figures.warnings)
