"""The features that a cluster makes are those of one machine, byte for byte.

The jobs run in this process, each after it was pickled, as a scheduler does. That they run on the
workers of a real cluster is tested in tests/e2e/test_dask.py.
"""

import json
import pickle
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from common.config.loading import ConfigError
from common.config.params import Params
from common.files import DataError
from common.layout import FEATURES, PARQUET
from features.collect.stage import collect
from features.dataset.stage import build_features
from features.distributed import jobs
from features.distributed.cluster import Cluster
from features.distributed.exchange import Exchange, FolderExchange, StoreExchange
from features.distributed.jobs import Job, PackedCodes
from features.distributed.merge_counts import Range, ranges_of
from features.ingest.stage import ingest
from tests.factories.dated_logs import use_schemas_of
from tests.factories.support import make_params

SCHEMA = """
format: {kind: json_lines, null_tokens: [""]}
columns:
  - {kind: label, names: [click]}
  - {kind: dense, names: [price], parse: float, transform: log1p}
  - {kind: categorical, names: [site], parse: string, policy: vocabulary}
  - {kind: categorical, names: [item], parse: integer, policy: {name: vocabulary_and_hash, buckets: 5}}
  - {kind: categorical, names: [user], parse: hex32, policy: {name: hash, buckets: 11}}
LISTS
derived:
  - {name: bucket, transform: {name: quantile, buckets: 8}, of: [price], policy: vocabulary}
  - {name: often, transform: {name: count, min_count: 3}, of: [site]}
  - {name: pair, transform: cross, of: [site, item], policy: vocabulary}
"""
LISTS = """
  - {kind: categorical, names: [viewed], parse: integer, policy: {name: vocabulary_and_hash, buckets: 5}, table: item, list: {pooling: sum, max_length: 3}}
  - {kind: categorical, names: [tags], parse: string, policy: vocabulary, list: {pooling: max, max_length: 4}}
"""
DAYS = {"split": {"by": "days", "valid_days": 0.5, "test_days": 0.5, "test_first": False}}
FOLDS = {"split": {"by": "folds", "folds": 4, "seed": 7}}
SIZES = [300, 7, 0, 260, 5, 4, 310, 200]  # small days are counted together


@dataclass
class PickledJobs:
    """Runs jobs here, after each was pickled, and in another order; it remembers them."""

    done: list[Job] = field(default_factory=list)

    def run(self, new_jobs: Iterable[Job]) -> Iterator[Any]:
        """Run the last job first, and the first one twice, as a cluster may."""
        in_order = list(new_jobs)
        self.done += in_order
        results = [pickle.loads(pickle.dumps(job)).run() for job in reversed(in_order)]
        if in_order:
            results[-1] = pickle.loads(pickle.dumps(in_order[0])).run()
        return reversed([pickle.loads(pickle.dumps(result)) for result in results])

    def titles(self, action: str) -> list[str]:
        """Return the titles of the jobs that begin with a word."""
        return [job.title for job in self.done if job.title.startswith(action)]


def write_days(folder: Path, sizes: list[int]) -> None:
    """Write a log file for each day."""
    random = np.random.default_rng(3)
    folder.mkdir(parents=True)
    for day, num_rows in enumerate(sizes):
        rows = [
            {
                "click": int(random.random() < 0.3),
                "price": None if random.random() < 0.1 else round(float(random.lognormal()), 2),
                "site": str(random.choice(["a", "b", "ä", "z" * 40, "", str(day)])),
                "item": int(random.zipf(1.3) % 1000) - 20,
                "user": f"{random.integers(0, 2**32):08x}",
                "viewed": [int(one) for one in random.zipf(1.5, random.integers(0, 5)) % 1000],
                "tags": [f"tag {one}" for one in random.zipf(1.5, random.integers(0, 6)) % 50],
            }
            for _ in range(num_rows)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"day_{day}.jsonl").write_text(text)


def params_of(log: str, **features: Any) -> Params:
    """Return parameters for the log `log`."""
    values = {"min_count": 2, "fit_days": 2, **DAYS, **features}
    return make_params(
        data__source=log,
        data__schema="clicks",
        data__days=5,
        **{f"features__{name}": value for name, value in values.items()},
    )


def exchange_of(kind: str, root: Path) -> Exchange:
    if kind == "folder":
        return FolderExchange(root.absolute() / "artifacts/.exchange")
    return StoreExchange((root / "store").as_uri(), "run")


def small_jobs(runner: PickledJobs, exchange: Exchange) -> Cluster:
    """Return a cluster whose jobs are small, so that every phase has several."""
    return Cluster(runner.run, exchange, counted_rows=90, merged_values=60, encoded_rows=250)


def content(root: Path) -> dict[str, bytes]:
    top = root / FEATURES
    return {
        path.relative_to(top).as_posix(): path.read_bytes()
        for path in top.rglob("*")
        if path.is_file()
    }


def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ids: str = "frequency") -> Path:
    """Return a folder with the schema for a layout, and a log of several files and of one in it."""
    (tmp_path / "schemas").mkdir()
    schema = SCHEMA.replace("LISTS\n", "" if ids == "appearance" else LISTS)
    if ids != "frequency":
        schema = re.sub(r"policy: \{.*?\}", "policy: vocabulary", schema)
    (tmp_path / "schemas/clicks.yaml").write_text(schema)
    use_schemas_of(tmp_path / "schemas", monkeypatch)
    root = tmp_path / "root"
    write_days(root / "several", SIZES)
    (root / "one.jsonl").write_bytes(
        b"".join(path.read_bytes() for path in sorted((root / "several").iterdir()))
    )
    return root


@pytest.mark.parametrize("kind", ["folder", "store"])
@pytest.mark.parametrize(
    ("log", "features"),
    [
        ("several", {}),
        ("several", {"fit_days": 100}),
        ("several", FOLDS),
        ("several", {"ids": "padded"}),
        ("one.jsonl", {}),
        ("one.jsonl", {"ids": "padded", **FOLDS}),
        ("one.jsonl", {"ids": "appearance"}),
    ],
    ids=str,
)
def test_the_bytes_are_those_of_one_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: str, features: dict[str, Any], kind: str
) -> None:
    ids = features.get("ids", "frequency")
    root = prepared(tmp_path, monkeypatch, ids)
    params = params_of(log, **features)
    for stage in (collect, ingest, build_features):
        stage(params, root)
    expected = content(root)
    shutil.rmtree(root / FEATURES)

    runner, exchange = PickledJobs(), exchange_of(kind, root)
    cluster = small_jobs(runner, exchange)
    build_features(params, root, counter=cluster, write=cluster.write_days)
    found = content(root)
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []
    assert len(runner.titles("count")) > 5
    assert len(runner.titles("encode")) > 3
    if ids != "appearance":
        assert len(runner.titles("merge item")) > 2  # several ranges
    exchange.remove()
    assert not list((root / "artifacts").glob(".exchange"))


def test_growth_by_new_days(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines may change from run to run; only new days are counted and encoded."""
    root = prepared(tmp_path, monkeypatch)
    all_days = sorted((root / "several").iterdir())
    params = params_of("several", min_count=3)
    runner = PickledJobs()
    cluster = small_jobs(runner, exchange_of("folder", root))
    later = all_days[5:]
    for path in later:
        path.rename(root / path.name)
    for stage in (collect, ingest):
        stage(params, root)
    build_features(params, root, counter=cluster, write=cluster.write_days)
    for number, path in enumerate(later):
        (root / path.name).rename(path)
        for stage in (collect, ingest):
            stage(params, root)
        runner.done.clear()
        if number == 1:
            build_features(params, root)
        else:
            build_features(params, root, counter=cluster, write=cluster.write_days)
            assert not any("day_0" in title for title in runner.titles("count"))
            assert not any("day_0" in title for title in runner.titles("encode"))
    grown = content(root)
    shutil.rmtree(root / FEATURES)
    build_features(params, root)
    assert content(root) == grown


def test_a_damaged_shard_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = prepared(tmp_path, monkeypatch)
    params = params_of("several")
    for stage in (collect, ingest):
        stage(params, root)
    shard = root / PARQUET / "day_3.jsonl.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:500] + bytes([whole[500] ^ 1]) + whole[501:])
    cluster = small_jobs(PickledJobs(), exchange_of("folder", root))
    with pytest.raises(DataError, match=r"day_3\.jsonl\.parquet is damaged"):
        build_features(params, root, counter=cluster, write=cluster.write_days)
    assert not (root / FEATURES).exists()


def test_a_worker_with_other_code_is_refused(tmp_path: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Nothing(Job):
        def work(self) -> None:
            """Do nothing."""

    job = Nothing(title="nothing", exchange=FolderExchange(tmp_path))
    job.run()
    with pytest.raises(ConfigError, match="another clickmill, polars or pyarrow"):
        replace(job, recipe="0" * 64).run()
    assert len(jobs.RECIPE) == 64


def test_ranges_have_every_value_once() -> None:
    random = np.random.default_rng(1)
    values = pl.Series("value", np.unique(random.zipf(1.2, 5000) % 10**6))
    samples = [(len(values), values[::7]), (3, values[:3]), (0, values[:0])]
    ranges = ranges_of(samples, 100)
    assert len(ranges) > 5
    assert ranges[0].low is None
    assert ranges[-1].high is None
    assert [one.high for one in ranges[:-1]] == [one.low for one in ranges[1:]]
    sizes = np.histogram(values, [-1, *[one.low for one in ranges[1:]], 10**6])[0]
    assert max(sizes) < 300
    assert ranges_of([(5, values[:5])], 100) == [Range()]
    assert ranges_of([], 100) == [Range()]


def test_packed_codes() -> None:
    codes = np.repeat(np.array([0, 1, 2, 0], np.uint8), [10**6, 3, 5, 10])
    packed = PackedCodes.of(codes)
    assert len(packed.compressed) < 10_000
    assert np.array_equal(packed.unpack(), codes)
