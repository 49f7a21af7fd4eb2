"""The sample log: format, sizes, statistics of the real log, known optimum, bytes from the seed."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from common.config.loading import ConfigError
from common.progress import Progress
from features.ingest.readers.read_log import read_log
from features.sample import generate as generator
from features.sample.generate import write_sample
from features.sample.optimum import OptimumMetrics
from features.sample.signal import Signal
from features.sample.values import ValueSampler, scatter
from features.schema.schema import SCHEMAS, Schema, check_schema, load_schema

CRITEO = load_schema("criteo")
NUM_ROWS, NUM_DAYS, SEED = 137_139, 7, 1  # as many rows as the statistics below come from
LAST = NUM_ROWS * 6 // 7
DISTINCT = [
    616,
    528,
    61764,
    32223,
    154,
    12,
    8634,
    292,
    3,
    13982,
    4087,
    56397,
    2944,
    26,
    5897,
    46382,
    10,
    2827,
    1342,
    4,
    52250,
    13,
    14,
    14596,
]
DISTINCT += [55, 11139]
UNSEEN = {"C3": 0.43, "C12": 0.40, "C21": 0.36, "C16": 0.31, "C4": 0.20}
MISSING = [0.451, 0, 0.213, 0.214, 0.026, 0.223, 0.043, 0.001, 0.043, 0.451, 0.043, 0.765, 0.214]


def write(
    path: Path, num_rows: int, num_days: int, seed: int, schema: Schema = CRITEO
) -> dict[str, Any]:
    with Progress("sample", num_rows, path.parent / "progress") as progress:
        return write_sample(path, num_rows, num_days, seed, schema, progress)


def truth_of(path: Path) -> NDArray[np.float64]:
    return pl.read_parquet(f"{path}.truth.parquet")["probability"].to_numpy()


def read(path: Path) -> pl.DataFrame:
    types = {name: pl.String if name in CRITEO.categorical else pl.Int64 for name in CRITEO.names}
    return pl.read_csv(path, separator="\t", has_header=False, schema=types, quote_char=None)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sample") / "log.tsv"
    write(path, NUM_ROWS, NUM_DAYS, SEED)
    return path


@pytest.fixture(scope="module")
def rows(log: Path) -> pl.DataFrame:
    return read(log)


def test_lines_have_the_declared_format(log: Path) -> None:
    dense, categorical = (
        rf"(\t(-?\d+)?){{{len(CRITEO.dense)}}}",
        rf"(\t([0-9a-f]{{8}})?){{{len(CRITEO.categorical)}}}",
    )
    lines = log.read_text().split("\n")
    assert lines.pop() == ""
    assert len(lines) == NUM_ROWS
    assert [line for line in lines if not re.fullmatch("[01]" + dense + categorical, line)] == []


@pytest.mark.parametrize(("num_rows", "num_days"), [(1, 1), (5, 7), (1001, 7), (70_000, 1)])
def test_as_many_rows_and_days_as_asked_for(tmp_path: Path, num_rows: int, num_days: int) -> None:
    optimum = write(tmp_path / "log.tsv", num_rows, num_days, SEED)
    assert (
        read(tmp_path / "log.tsv").height
        == truth_of(tmp_path / "log.tsv").size
        == optimum["num_rows"]
        == num_rows
    )
    sizes = [day["num_rows"] for day in optimum["days"]]
    assert (len(sizes), max(sizes) - min(sizes) <= 1, sorted(sizes, reverse=True)) == (
        num_days,
        True,
        sizes,
    )


def test_bytes_depend_on_the_seed_and_not_on_the_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = []
    for num_threads, seed in [(2, SEED), (1, SEED), (2, SEED + 1)]:
        monkeypatch.setattr(generator, "NUM_THREADS", num_threads)
        monkeypatch.setattr(generator, "CHUNK_ROWS", 1000)  # many chunks to take turns
        write(tmp_path / "log.tsv", 10_007, 2, seed)
        logs.append([path.read_bytes() for path in sorted(tmp_path.glob("log.tsv*"))])
    assert len(logs[0]) == 3
    assert len({*logs[0][0].split(b"\n")}) == 10_007 + 1  # no chunk repeats another's rows
    assert logs[0] == logs[1]
    assert all(one != other for one, other in zip(logs[0], logs[2], strict=True))


def test_shares_of_missing_values_and_columns_that_are_missing_together(rows: pl.DataFrame) -> None:
    shares = rows.null_count().row(0, named=True)
    np.testing.assert_allclose(
        [shares[name] / NUM_ROWS for name in CRITEO.dense], MISSING, atol=0.006
    )
    for share, group in [
        (0.034, "C3 C4 C12 C16 C21 C24"),
        (0.122, "C6"),
        (0.442, "C19 C20 C25 C26"),
        (0.761, "C22"),
    ]:
        together = rows.select(
            pl.concat_list(pl.col(group.split()).is_null()).list.n_unique().eq(1).all()
        ).item()
        assert together, group
        assert shares[group.split()[0]] / NUM_ROWS == pytest.approx(share, abs=0.006)
    assert shares["C1"] == 0


def test_label_rate(rows: pl.DataFrame) -> None:
    assert rows["label"].mean() == pytest.approx(0.2568, abs=0.005)


def test_dense_columns_are_heavy_tailed_counts_and_few_are_negative(rows: pl.DataFrame) -> None:
    least = rows.select(pl.col(CRITEO.dense).min()).row(0, named=True)
    assert {name: value for name, value in least.items() if value < 0} == {"I2": -2}
    assert 0.05 < (rows["I2"] < 0).mean() < 0.15  # type: ignore[operator]
    assert rows["I5"].median() == pytest.approx(2800, rel=0.1)
    assert rows["I5"].mean() > 5 * rows["I5"].median()  # type: ignore[operator]


def test_distinct_values_like_the_real_log(rows: pl.DataFrame) -> None:
    counts = [rows[name].drop_nulls().n_unique() for name in CRITEO.categorical]
    off = {
        name: (n, m)
        for name, n, m in zip(CRITEO.categorical, counts, DISTINCT, strict=True)
        if abs(n - m) > max(3, 0.25 * m)
    }
    assert off == {}


def test_the_last_day_has_values_that_never_occurred_before(rows: pl.DataFrame) -> None:
    for name, share in UNSEEN.items():
        before, after = rows[name][:LAST].drop_nulls(), rows[name][LAST:].drop_nulls()
        assert 1 - after.is_in(before.unique().implode()).mean() == pytest.approx(
            share, abs=0.04
        ), name


def test_popularity_drifts(rows: pl.DataFrame) -> None:
    """From the first to the last day, the share of a common value changes more than by chance."""
    size = NUM_ROWS // NUM_DAYS
    swings = []
    for name in CRITEO.categorical:
        value = rows[name].drop_nulls().mode().sort()[0]
        first, last = ((part == value).mean() for part in (rows[name][:size], rows[name][-size:]))
        swings.append(abs(last - first) / np.sqrt((first + last) / size))  # type: ignore[operator]
    assert np.median(swings) > 3


def test_texts_of_a_column_do_not_collide_and_differ_between_columns(rows: pl.DataFrame) -> None:
    low_bits = np.arange(1 << 20, dtype=np.uint32)
    words = scatter(np.concatenate([low_bits, low_bits[1 << 8 :] << np.uint32(12)]))
    assert np.unique(words).size == words.size
    assert not {*rows["C1"].unique()} & {*rows["C2"].unique()}


def test_truth_is_calibrated(log: Path, rows: pl.DataFrame) -> None:
    """In each twentieth of the rows by probability, there are as many clicks as expected."""
    truth = truth_of(log)
    for part in np.array_split(np.argsort(truth), 20):
        error = rows["label"].to_numpy()[part].mean() - truth[part].mean()
        assert abs(error) < 4.5 * np.sqrt((truth[part] * (1 - truth[part])).sum()) / part.size


def test_optimum_is_the_metrics_of_the_true_probabilities(log: Path, rows: pl.DataFrame) -> None:
    optimum = json.loads(Path(f"{log}.optimum.json").read_text())
    labels, truth = rows["label"].to_numpy(), truth_of(log)
    ends = np.cumsum([day["num_rows"] for day in optimum["days"]])
    parts = [
        (optimum, slice(0, NUM_ROWS)),
        *(
            (day, slice(end - day["num_rows"], end))
            for day, end in zip(optimum["days"], ends, strict=True)
        ),
    ]
    for said, part in parts:
        rate, logloss = labels[part].mean(), log_loss(labels[part], truth[part])
        entropy = -rate * np.log(rate) - (1 - rate) * np.log(1 - rate)
        assert said["auc"] == pytest.approx(roc_auc_score(labels[part], truth[part]), abs=1e-6)
        assert said["logloss"] == pytest.approx(logloss, rel=1e-9)
        assert said["label_rate"] == pytest.approx(rate, rel=1e-12)
        assert said["normalized_entropy"] == pytest.approx(logloss / entropy, rel=1e-9)
    assert 0.78 < optimum["auc"] < 0.82
    assert 0.43 < optimum["logloss"] < 0.47


def test_a_tie_is_worth_one_half() -> None:
    best = OptimumMetrics()
    best.add(np.array([0.3, 0.3, 0.6, 0.6]), np.array([False, True, False, True]))
    assert best.metrics()["auc"] == 0.5


def test_one_class_has_no_auc(tmp_path: Path) -> None:
    optimum = write(tmp_path / "log.tsv", 1, 2, SEED)
    assert (optimum["auc"], optimum["normalized_entropy"], optimum["days"][1]["logloss"]) == (
        None,
        None,
        None,
    )


def test_each_part_of_the_signal_has_its_size() -> None:
    assert CRITEO.sample is not None
    pilot = ValueSampler(CRITEO, CRITEO.sample).day(0).draw(20_000, np.random.default_rng(1))
    signal = Signal.fit(CRITEO, CRITEO.sample, SEED, pilot)
    wanted = CRITEO.sample.signal
    sizes = (signal.terms(pilot) * signal.scales[:, None]).std(axis=1)
    np.testing.assert_allclose(sizes, [wanted.dense, wanted.categorical, wanted.interactions])


def test_a_linear_model_finds_most_of_the_signal(log: Path, rows: pl.DataFrame) -> None:
    """A model of dense and small columns without interactions closes half of the gap.

    It is trained on six days and tested on the seventh.
    """
    labels = rows["label"].to_numpy()
    dense = StandardScaler().fit_transform(
        np.log1p(rows.select(pl.col(CRITEO.dense).fill_null(0).clip(0)).to_numpy())
    )
    small = [name for name, count in zip(CRITEO.categorical, DISTINCT, strict=True) if count < 400]
    onehot = OneHotEncoder(
        min_frequency=100, handle_unknown="ignore", sparse_output=False
    ).fit_transform(rows.select(small).fill_null("").to_numpy())
    columns = np.hstack([dense, onehot]).astype(np.float32)
    model = LogisticRegression(max_iter=100).fit(columns[:LAST], labels[:LAST])
    loss = log_loss(labels[LAST:], model.predict_proba(columns[LAST:])[:, 1])
    constant, best = (
        log_loss(labels[LAST:], np.full(NUM_ROWS - LAST, labels[:LAST].mean())),
        log_loss(labels[LAST:], truth_of(log)[LAST:]),
    )
    assert (constant - loss) / (constant - best) > 0.5


def test_an_error_leaves_no_files(tmp_path: Path) -> None:
    class FullError(OSError):
        pass

    class Stopping(Progress):
        def update(self, num_rows: int) -> None:
            raise FullError

    with pytest.raises(FullError), Stopping("sample", 10, tmp_path) as progress:
        write_sample(tmp_path / "log.tsv", 10, 1, SEED, CRITEO, progress)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("num_rows", "num_days", "seed", "said"),
    [(0, 1, 1, "rows .* found 0"), (1, 0, 1, "days .* 0"), (1, 1, -1, "seed .* -1")],
)
def test_impossible_sizes_are_refused(
    tmp_path: Path, num_rows: int, num_days: int, seed: int, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        write(tmp_path / "log.tsv", num_rows, num_days, seed)


def test_a_schema_without_a_section_sample_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no section `sample`"):
        write(tmp_path / "log.tsv", 1, 1, SEED, CRITEO.model_copy(update={"sample": None}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"levels": [0, 1]}, r"quantiles\.I1: 2 rising values expected"),
        ({"levels": [0.0, 0.5]}, "levels: 0, …, 1 in rising order expected"),
        ({"quantiles": {}}, "quantiles: I1 expected"),
        ({"popularity": {}}, "popularity: C1 expected"),
        (
            {"missing": [{"share": 0.5, "columns": ["I99"]}]},
            "I99 is no dense or categorical column",
        ),
    ],
)
def test_a_wrong_section_is_refused_by_name(change: dict[str, Any], said: str) -> None:
    values = CRITEO.model_dump()
    values["sample"] |= change
    with pytest.raises(ConfigError, match=said):
        check_schema(Schema.model_validate(values), SCHEMAS / "criteo.yaml")


def with_lists() -> Schema:
    """Return Criteo's schema with lists in C26, whose values are those of C25."""
    values = CRITEO.model_dump()
    (categorical,) = (group for group in values["columns"] if group["kind"] == "categorical")
    categorical["names"] = categorical["names"][:-2]
    options = {"separator": "|", "pooling": "mean", "max_length": 20}
    values["columns"] += [
        {**categorical, "names": ["C25"], "table": "shop"},
        {**categorical, "names": ["C26"], "table": "shop", "list": options},
    ]
    values["sample"]["lengths"] = {"C26": [0, 0, 0, 1, 2, 4, 8, 16, 20]}
    values["sample"]["popularity"]["C26"] = values["sample"]["popularity"]["C25"]
    return check_schema(Schema.model_validate(values), SCHEMAS / "criteo.yaml")


def test_lists_have_the_declared_lengths_and_the_values_of_their_table(tmp_path: Path) -> None:
    schema = with_lists()
    path = tmp_path / "log.tsv"
    write(path, 20_000, 2, SEED, schema)
    rows = pl.concat(
        piece.rows for piece in read_log(path, schema, labelled=True, short_rows="quarantine")
    )
    assert rows.height == 20_000
    # C25 and C26 are missing in the same rows; there the list is empty.
    lengths = rows["C26"].list.len().filter(rows["C25"].is_not_null())
    assert lengths.max() <= 20
    assert lengths.fill_null(0).quantile(0.9) == pytest.approx(8, abs=1)
    assert rows["C26"].filter(rows["C25"].is_null()).is_null().all()
    assert rows["C26"].list.len().min() == 1  # an empty list is a missing field in a text log
    popular = [
        set(column.drop_nulls().value_counts(sort=True).to_series()[:20])
        for column in (rows["C26"].explode(), rows["C25"])
    ]
    assert len(popular[0] & popular[1]) >= 15


def test_lists_need_lengths() -> None:
    values = with_lists().model_dump()
    del values["sample"]["lengths"]
    with pytest.raises(ConfigError, match=r"sample: lengths: C26 expected"):
        check_schema(Schema.model_validate(values), SCHEMAS / "criteo.yaml")


def test_other_kinds_of_columns_cannot_be_generated() -> None:
    values = CRITEO.model_dump()
    values["columns"].append({"kind": "ignored", "names": ["extra"]})
    with pytest.raises(ConfigError, match=r"kind ignored \(extra\) cannot be"):
        check_schema(Schema.model_validate(values), SCHEMAS / "criteo.yaml")
