"""The figures of data.json against direct counts, for every kind of feature, policy and layout."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from features.encode.feature_state import (
    MISSING,
    NUM_RESERVED,
    UNSEEN,
    FeatureState,
    Layout,
    feature_value,
)
from features.encode.vocabulary_history import CountedDay, VocabularyHistory
from features.quality.data_profile import (
    DayProfile,
    IdCounter,
    Tally,
    data_json,
    vocabulary_json,
)
from features.quality.drift import count_in_bins, psi
from tests.factories.profiled_rows import BUCKETS, HASHED, SCHEMA, draw_rows, fit_state

SPLITS_OF_DAYS = [["train"], ["train"], ["train", "valid"], ["test"]]
NAMES = ["mon.tsv", "tue.tsv", "wed.tsv", "thu.tsv"]


def made(
    ids: Layout = "frequency",
) -> tuple[list[dict[str, pl.DataFrame]], FeatureState, dict[str, Any]]:
    """Return the rows of each day by split, the feature state, and the contents of data.json."""
    days = [
        {split: draw_rows(300 + 50 * k, 10 * k + i) for i, split in enumerate(splits)}
        for k, splits in enumerate(SPLITS_OF_DAYS)
    ]
    state = fit_state(pl.concat([day["train"] for day in days if "train" in day]), ids)
    summaries = []
    for day in days:
        profile = DayProfile(state)
        for split, rows in day.items():
            for part in (rows[:100], rows[100:]):
                profile.add(split, part, state.encode(part))
        summaries.append(json.loads(json.dumps(profile.summary())))  # as they are read from a file
    num_distinct = {name: 1000 + i for i, name in enumerate(SCHEMA.categorical_features)}
    return (
        days,
        state,
        data_json(summaries, SCHEMA, state.cardinalities, num_distinct, [0, 2, 0, 1], NAMES),
    )


def test_rows_and_label_rates() -> None:
    days, _, data = made()
    rows = [pl.concat(day.values()) for day in days]
    everything = pl.concat(rows)
    assert (data["num_rows"], data["num_bad_rows"]) == (everything.height, 3)
    for split, in_days in {"train": [0, 1, 2], "valid": [2], "test": [3]}.items():
        expected = pl.concat([days[k][split] for k in in_days])
        assert data["splits"][split] == {
            "num_rows": expected.height,
            "label_rate": expected["click"].mean(),
            "days": in_days,
        }
    for k, compared in enumerate(data["days"]):
        assert (compared["day"], compared["name"], compared["num_bad_rows"]) == (
            k,
            NAMES[k],
            [0, 2, 0, 1][k],
        )
        assert (compared["num_rows"], compared["label_rate"]) == (
            rows[k].height,
            rows[k]["click"].mean(),
        )
        assert compared["split_rows"] == {split: part.height for split, part in days[k].items()}
        window = pl.concat(
            [day["train"] for j, day in enumerate(days) if j != k and "train" in day]
        )
        assert compared["window"] == {
            "num_rows": window.height,
            "label_rate": pytest.approx(window["click"].mean()),
        }


def test_every_column_of_every_day() -> None:
    days, state, data = made()
    assert [column["name"] for column in data["columns"]] == [
        *SCHEMA.dense_features,
        *SCHEMA.categorical_features,
    ]
    for k, compared in enumerate(data["days"]):
        rows = pl.concat(days[k].values())
        window = pl.concat(
            [day["train"] for j, day in enumerate(days) if j != k and "train" in day]
        )
        for feature in SCHEMA.features:
            column = compared["columns"][feature.name]
            for name, frame in (("missing", rows), ("window_missing", window)):
                assert (
                    column[name]
                    == frame.select(pl.any_horizontal(pl.col(feature.of).is_null()))
                    .to_series()
                    .mean()
                )
            if feature.policy is None or feature.name in HASHED:
                assert (column["unseen"], column["window_unseen"]) == (None, None)
            else:
                known = state.vocabularies[feature.name].implode()
                of_time = feature.transform is not None and feature.transform.takes == "time"
                assert (column["window_unseen"] is None) == of_time  # each day has another weekday
                for name, frame in (
                    ("unseen", rows),
                    *([] if of_time else [("window_unseen", window)]),
                ):
                    values = frame.select(feature_value(feature, None)).to_series()
                    assert column[name] == (values.is_not_null() & ~values.is_in(known)).mean()
                values = rows.select(feature_value(feature, None)).to_series().drop_nulls()
                assert column["distinct"] == values.filter(values.is_in(known)).n_unique()
        assert compared["columns"]["price"]["drift"] == psi(
            count_in_bins(rows["price"]), count_in_bins(window["price"])
        )
        often, window_often = (
            count_in_bins(state.encode(frame)["often"]) for frame in (rows, window)
        )
        assert compared["columns"]["often"]["drift"] == psi(often, window_often)
        assert compared["columns"]["weekday"]["drift"] is None
        assert compared["columns"]["page"]["distinct"] == state.encode(rows)["page"].n_unique()
        assert compared["columns"]["price"]["distinct"] is None


def test_columns_over_all_days() -> None:
    days, state, data = made()
    everything = pl.concat([part for day in days for part in day.values()])
    columns = {column["name"]: column for column in data["columns"]}
    site = columns["site"]
    assert (site["kind"], site["missing"], site["distinct"]) == (
        "categorical",
        everything["site"].is_null().mean(),
        1000,
    )
    assert site["cardinality"] == len(state.vocabularies["site"]) + NUM_RESERVED
    test_users = days[3]["test"]["user"]
    assert (
        columns["user"]["unseen_test"]
        == (~test_users.is_in(state.vocabularies["user"].implode())).mean()
    )
    assert (
        columns["price"]["kind"],
        columns["price"]["distinct"],
        columns["price"]["unseen_valid"],
    ) == ("dense", None, None)
    assert columns["often"]["kind"] == "dense"


@pytest.mark.parametrize("ids", ["appearance", "padded"])
def test_layouts_without_an_id_of_unseen_values(ids: Layout) -> None:
    days, state, data = made(ids)
    for compared in data["days"]:
        assert {column["unseen"] for column in compared["columns"].values()} == {None}
    assert (
        data["days"][0]["columns"]["site"]["distinct"]
        == state.encode(days[0]["train"])["site"].n_unique()
    )
    assert {column["unseen_test"] for column in data["columns"]} == {None}
    assert data["days"][3]["columns"]["user"]["drift"] is not None


def test_a_day_without_rows_and_a_log_of_one_day() -> None:
    rows = draw_rows(100, 1)
    state = fit_state(rows)
    empty = DayProfile(state).summary()
    profile = DayProfile(state)
    profile.add("train", rows, state.encode(rows))
    data = data_json([profile.summary(), empty], SCHEMA, [9] * 5, {}, [0, 0], ["a", "b"])
    assert data["days"][1]["columns"] == {}
    assert (data["days"][1]["num_rows"], data["days"][1]["label_rate"]) == (0, None)
    assert data["days"][0]["window"] == {"num_rows": 0, "label_rate": None}
    assert data["days"][0]["columns"]["site"]["drift"] is None
    assert data["days"][0]["columns"]["site"]["window_missing"] is None
    assert data["splits"]["test"] == {"num_rows": 0, "label_rate": None, "days": []}
    json.dumps(data, allow_nan=False)


def test_ids_are_counted_alike_in_small_and_large_batches() -> None:
    rng = np.random.default_rng(3)
    ids = rng.integers(0, 40, 1000, dtype=np.int32)
    whole, parts = (IdCounter(50, NUM_RESERVED + BUCKETS) for _ in range(2))
    counts = whole.count(ids)  # more than eight rows for each id
    assert (counts == sum(parts.count(part) for part in np.split(ids, 100))).all()
    assert (
        whole.num_distinct
        == parts.num_distinct
        == len(set(ids.tolist()) - set(range(NUM_RESERVED + BUCKETS)))
    )
    unseen, missing = counts[-2:]
    assert missing == (ids == MISSING).sum()
    assert (
        unseen
        == (ids == UNSEEN).sum() + ((ids >= NUM_RESERVED) & (ids < NUM_RESERVED + BUCKETS)).sum()
    )


def test_a_summary_is_small_and_survives_json() -> None:
    state = fit_state(draw_rows(3000, 4))
    profile = DayProfile(state)
    profile.add("train", draw_rows(3000, 5), state.encode(draw_rows(3000, 5)))
    tally = Tally.from_json(json.loads(json.dumps(profile.summary()))["splits"]["train"])
    assert tally.to_json() == profile.summary()["splits"]["train"]
    assert len(json.dumps(profile.summary())) < 2000 * len(SCHEMA.features)


def test_sizes_and_last_days_of_vocabularies() -> None:
    history = VocabularyHistory(
        made_by="",
        sizes=[[3, 7, 0, 1, 7], [4, 9, 0, 1, 7]],
        last_seen={"site": [1, 3], "user": [0, 9], "both": [0, 1], "weekday": [2, 5]},
    )
    assert vocabulary_json(history, SCHEMA) is None  # no day was counted on its own
    days = [CountedDay("mon.tsv", "", 1, 0), CountedDay("tue.tsv", "", 1, 1)]
    vocabulary = vocabulary_json(replace(history, days=days), SCHEMA)
    assert vocabulary == {
        "days": ["mon.tsv", "tue.tsv"],
        "sizes": {"site": [3, 4], "user": [7, 9], "both": [1, 1], "weekday": [7, 7]},
        "last_seen": history.last_seen,
    }
