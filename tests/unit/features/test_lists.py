"""Lists from the log to the batches of training: days, vocabularies, the data profile and pools."""

import json
from collections import Counter
from collections.abc import Iterator
from itertools import chain, pairwise
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import pytest
import torch

from common.artifact import Artifact
from common.config.loading import ConfigError
from common.files import read_json
from common.layout import FEATURES
from features.encode.feature_state import FeatureState
from features.ingest.readers.row_validation import typed_columns
from features.schema.check_params import check_layout
from tests.factories.list_logs import MAX_LENGTHS, Row, schema_of, typed_rows, write_log
from tests.factories.support import make_features, make_params
from training.loop.batches import Batches, Rows
from training.models.bags import Bag

NUM_DAYS, DAY_ROWS, MIN_COUNT = 4, 150, 3


def rows_of_day(day: int) -> list[Row]:
    """Return rows whose price is the number of the row in the log; each day has new items."""
    random = Random(day)

    def some(most: int, value: Any) -> list[Any]:
        return [value() for _ in range(random.randint(0, most))]

    rows = []
    for number in range(day * DAY_ROWS, (day + 1) * DAY_ROWS):
        viewed: list[int | None] = some(6, lambda: random.randint(day * 5, day * 5 + 20))
        if random.random() < 0.1:
            viewed.append(None)
        is_missing = random.random() < 0.1
        rows.append(
            {
                "clicked": random.randint(0, 1),
                "price": float(number),
                "viewed": None if is_missing else viewed,
                "viewed_weights": None if is_missing else [random.random() for _ in viewed],
                "item": random.randint(day * 5, day * 5 + 20),
                "tags": some(6, lambda: random.choice(["a", "b", "c", f"new {day}"])),
                "codes": some(3, lambda: f"{random.randint(0, 99):x}"),
                "weight": random.random(),
            }
        )
    return rows


LOG = [rows_of_day(day) for day in range(NUM_DAYS)]


def write_days(root: Path, days: int) -> None:
    """Write the files of the first days into the log."""
    (root / "clicks").mkdir(exist_ok=True)
    for day in range(days):
        write_log(root / "clicks" / f"day_{day}.jsonl", LOG[day], "json_lines")


@pytest.fixture(scope="module", autouse=True)
def schemas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let the only schema be that of lists."""
    directory = tmp_path_factory.mktemp("schemas")
    (directory / "lists.yaml").write_text(schema_of("json_lines").model_dump_json(by_alias=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("features.schema.schema.SCHEMAS", directory)
        patch.setattr("features.collect.stage.SCHEMAS", directory)
        yield


def run(root: Path, **changes: Any) -> Path:
    """Run the stages up to features, and return their folder."""
    split = {"by": "days", "valid_days": 0.5, "test_days": 0.5, "test_first": False}
    values: dict[str, Any] = {
        "data__source": "clicks",
        "data__schema": "lists",
        "features__min_count": MIN_COUNT,
        "features__fit_days": 1,
        "features__split": split,
    }
    make_features(root, make_params(**(values | changes)))
    return root / FEATURES


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The features of all days."""
    root = tmp_path_factory.mktemp("log")
    write_days(root, NUM_DAYS)
    return run(root)


def contents(features: Path) -> dict[str, bytes]:
    return {
        path.relative_to(features).as_posix(): path.read_bytes()
        for path in features.rglob("*")
        if path.is_file()
    }


def test_small_days_encoded_together_are_the_same_as_alone(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The days have different vocabulary versions, and two of them have two splits."""
    sizes = read_json(made / "vocabulary_history.json")["sizes"]
    assert len({tuple(size) for size in sizes}) > 1
    monkeypatch.setattr("features.dataset.writer.has_small_files", lambda day: False)
    write_days(tmp_path, NUM_DAYS)
    assert contents(run(tmp_path)) == contents(made)
    monkeypatch.setattr("features.dataset.writer.has_small_files", lambda day: True)
    monkeypatch.setattr("features.dataset.writer.MAX_DAYS", 3)
    (tmp_path / FEATURES / "manifest.json").unlink()  # nothing is reused
    assert contents(run(tmp_path)) == contents(made)


def test_day_by_day_is_the_same_as_all_at_once(made: Path, tmp_path: Path) -> None:
    for days in range(2, NUM_DAYS + 1):
        write_days(tmp_path, days)
        features = run(tmp_path)
    assert contents(features) == contents(made)


def test_features_that_share_a_table_share_its_vocabulary(made: Path) -> None:
    """The values of both are counted together, those of a list one by one and after the cut."""
    state = FeatureState.load(made / "state")
    counts = Counter(
        value
        for row in chain(*LOG[:-1])
        for value in [*(row["viewed"] or [])[: MAX_LENGTHS["viewed"]], row["item"]]
        if value is not None
    )
    frequent = {value for value, count in counts.items() if count >= MIN_COUNT}
    assert set(state.vocabularies["item"]) == frequent
    assert list(state.vocabularies) == ["item", "tags", "codes"]
    viewed, item, tags, _ = state.cardinalities
    assert viewed == item == 2 + len(frequent)
    assert tags == 2 + 7 + len(state.vocabularies["tags"])


def test_every_row_is_in_one_split_with_its_lists(made: Path) -> None:
    """The newest state encodes validation and test rows, which are all of the last day."""
    state = FeatureState.load(made / "state")
    typed = pl.DataFrame(typed_rows(LOG[-1]), schema=typed_columns(state.schema))
    found = pl.concat(
        [
            pl.read_parquet(made / split / f"day_{NUM_DAYS - 1:03d}.parquet")
            for split in ("valid", "test")
        ]
    )
    assert found.equals(state.encode(typed))
    num_train = sum(pl.read_parquet(path).height for path in (made / "train").glob("*.parquet"))
    assert num_train + found.height == NUM_DAYS * DAY_ROWS


def test_the_profile_counts_cut_empty_and_unseen_lists(made: Path) -> None:
    data = read_json(made / "data.json")
    columns = {column["name"]: column for column in data["columns"]}
    rows = list(chain(*LOG))
    for name, length in MAX_LENGTHS.items():
        lists = [row[name] or [] for row in rows]
        assert columns[name]["cut"] == sum(len(one) > length for one in lists) / len(rows)
        assert columns[name]["missing"] == sum(not one for one in lists) / len(rows)
    assert "cut" not in columns["item"]
    state = FeatureState.load(made / "state")
    known = {*state.vocabularies["item"].to_list(), None}
    num_unseen = sum(
        any(value not in known for value in (row["viewed"] or [])[: MAX_LENGTHS["viewed"]])
        for row in LOG[-1]
    )
    last_day = data["days"][-1]["columns"]["viewed"]
    assert num_unseen > 0
    assert last_day["unseen"] == num_unseen / DAY_ROWS
    assert last_day["length_drift"] == 0
    assert last_day["window_cut"] > 0


def test_longer_lists_on_one_day_are_reported(tmp_path: Path) -> None:
    write_days(tmp_path, NUM_DAYS - 1)
    longer = [
        {**row, "viewed": [5] * 40, "viewed_weights": [1.0] * 40, "tags": row["tags"]}
        for row in LOG[-1]
    ]
    write_log(tmp_path / "clicks" / f"day_{NUM_DAYS - 1}.jsonl", longer, "json_lines")
    warnings = read_json(run(tmp_path) / "data.json")["warnings"]
    found = [warning for warning in warnings if "the lengths of" in warning]
    assert len(found) == 1
    assert found[0].startswith(
        "day_3.jsonl: the lengths of viewed have drifted from the training rows of the other days: "
    )


def test_the_layout_of_the_reference_has_no_lists() -> None:
    with pytest.raises(
        ConfigError,
        match=r"params\.yaml: features\.ids is appearance, but viewed, item, tags, codes are lists",
    ):
        check_layout(schema_of("text"), "appearance")
    check_layout(schema_of("text"), "padded")


def test_the_layout_padded_has_lists(tmp_path: Path) -> None:
    write_days(tmp_path, 2)
    features = run(tmp_path, features__ids="padded")
    lists = pl.read_parquet(features / "train/day_000.parquet")["viewed"]
    assert lists.explode().drop_nulls().min() == 1


def make_batches(
    made: Path, batch_size: int, shuffle_rows: int, rank: int = 0, ranks: int = 1
) -> Batches:
    features = Artifact.open(made)
    return Batches(
        features.paths_in("train"),
        FeatureState.load(made / "state").schema,
        batch_size=batch_size,
        shuffle_rows=shuffle_rows,
        seed=1,
        rank=rank,
        world_size=ranks,
    )


def rows_with_lists(rows: Rows) -> list[tuple[Any, ...]]:
    """Return each row as a tuple of values and lists."""
    return list(
        zip(
            rows.dense[:, 0].tolist(),
            rows.ids.tolist(),
            rows.labels.tolist(),
            [] if rows.weights is None else rows.weights.tolist(),
            *(lists_of_bag(bag) for bag in rows.bags),
            strict=True,
        )
    )


def lists_of_bag(bag: Bag) -> list[Any]:
    weights = bag.values.tolist() if bag.weights is None else bag.weights.tolist()
    pairs = list(zip(bag.values.tolist(), weights, strict=True))
    starts = bag.starts.tolist()
    return [pairs[start:end] for start, end in pairwise(starts)]


@pytest.mark.parametrize("shuffle_rows", [0, 100, 10_000])
@pytest.mark.parametrize("batch_size", [7, 64, 1000])
def test_pools_keep_rows_and_lists_together(made: Path, batch_size: int, shuffle_rows: int) -> None:
    encoded = pl.concat(pl.read_parquet(path) for path in sorted((made / "train").glob("*")))
    expected = {}
    for row in encoded.iter_rows(named=True):
        lists = [list(zip(row["viewed"], row["viewed_weights"], strict=True))]
        lists += [[(one, one) for one in row[name]] for name in ("tags", "codes")]
        expected[row["price"]] = (
            row["price"],
            [row["item"]],
            float(row["clicked"]),
            row["weight"],
            *lists,
        )
    batches = make_batches(made, batch_size, shuffle_rows)
    found = [
        row
        for batch in batches.steps(0, batches.steps_per_epoch)
        for row in rows_with_lists(batch.rows)
    ]
    assert len(found) == len(expected) == encoded.height
    assert {row[0]: row for row in found} == expected


@pytest.mark.parametrize("shuffle_rows", [0, 100])
def test_batches_resume_at_any_step_with_equal_bytes(made: Path, shuffle_rows: int) -> None:
    batches = make_batches(made, 40, shuffle_rows)
    num_steps = 2 * batches.steps_per_epoch
    through = [tensors_of(batch.rows) for batch in batches.steps(0, num_steps)]
    for start in range(0, num_steps, 3):
        resumed = [tensors_of(batch.rows) for batch in batches.steps(start, num_steps)]
        assert resumed == through[start:]


def test_ranks_share_the_lists_of_a_batch(made: Path) -> None:
    (alone, *_) = make_batches(made, 100, 1000).steps(0, 1)
    parts = [next(make_batches(made, 100, 1000, rank, 3).steps(0, 1)).rows for rank in range(3)]
    assert tensors_of(Rows.concat(parts)) == tensors_of(alone.rows)
    assert tensors_of(alone.rows.to(torch.device("cpu"))) == tensors_of(alone.rows)


def tensors_of(rows: Rows) -> list[bytes]:
    """Return the bytes of all tensors of rows, with their dtypes and shapes."""
    tensors = [rows.dense, rows.ids, rows.labels, rows.weights, *chain(*rows.bags)]
    return [
        json.dumps([str(one.dtype), list(one.shape)]).encode() + one.numpy().tobytes()
        for one in tensors
        if one is not None
    ]


def test_dtypes_of_a_batch(made: Path) -> None:
    rows = next(make_batches(made, 10, 0).steps(0, 1)).rows
    assert [bag.values.dtype for bag in rows.bags] == [torch.int32] * 3
    assert [bag.starts.dtype for bag in rows.bags] == [torch.int64] * 3
    assert [bag.weights is None for bag in rows.bags] == [False, True, True]
    assert rows.weights is not None
    assert rows.weights.dtype == torch.float32
    assert rows.ids.shape == (10, 1)
