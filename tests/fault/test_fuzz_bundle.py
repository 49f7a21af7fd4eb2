"""Odd contents of a bundle, params.yaml and schemas: refused in one line, or used; never a crash.

The hashes of a changed file are made right again, so that its contents are looked at.
"""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from ruamel.yaml import YAML

from common.artifact import Artifact, write_manifest
from common.bundle_layout import MANIFEST, MODEL, STATE
from common.checked_json import HASH_KEY, write_checked_json
from common.config.loading import ConfigError, check, read_yaml
from common.config.params import PRESETS, load_params
from common.files import DataError, sha256_file, write_json
from common.layout import FEATURES
from features.encode.feature_state import FeatureState, feature_value, fit_transforms
from features.encode.vocabulary import frequent_values
from features.ingest.readers.read_log import read_log
from features.schema.check_params import check_against_schema
from features.schema.schema import SCHEMAS, Schema, check_schema
from features.value_counts import count_values
from tests.factories.raw_logs import COLUMNS, TOKENS, json_line
from tests.factories.support import ROOT, make_params, plain_model
from training.inference.bundle import save_bundle
from training.inference.predict import predict
from training.models.factory import build_model

DERIVED: list[dict[str, Any]] = [
    {"name": "site_count", "transform": {"name": "count", "min_count": 1}, "of": ["site"]},
    {
        "name": "price_bucket",
        "transform": {"name": "quantile", "buckets": 4},
        "of": ["price"],
        "policy": "vocabulary",
    },
    {
        "name": "pair",
        "transform": "cross",
        "of": ["site", "shop"],
        "policy": {"name": "hash", "buckets": 7},
    },
    {"name": "hour", "transform": "hour", "of": ["at"], "policy": "vocabulary"},
    {"name": "clipped", "transform": {"name": "clip", "low": 0, "high": 9}, "of": ["stock"]},
]
DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]
ODD_VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    1,
    3,
    255,
    10**10,
    2**63 - 1,
    10**30,
    10**4000,
    0.5,
    -1e300,
    "",
    "x",
    "../../../etc/passwd",
    "/dev/zero",
    "\n\x1b[31m\0é",
    "x" * 100_000,
    [],
    {},
    [None],
    {"name": "x"},
    DEEP,
    list(range(5000)),
]
NUM_MUTATIONS = 100
ODD_KEYS = ["", "x", "name", "../x", "\n\x1b[31m", "x" * 10_000]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of every kind of feature in artifacts/model, and a log of 40 rows."""
    root = tmp_path_factory.mktemp("fuzz")
    rng = random.Random(5)
    lines = [
        json_line(
            site=rng.choice(["a", "b", None]),
            shop=rng.randrange(5),
            price=rng.random() * 9,
            stock=rng.randrange(100),
            code=f"{rng.randrange(20):x}",
        )
        for _ in range(40)
    ]
    (root / "log.jsonl").write_text("\n".join(lines) + "\n")
    values = {
        "format": {"kind": "json_lines", "null_tokens": TOKENS},
        "columns": COLUMNS,
        "derived": DERIVED,
    }
    schema = check_schema(check(Schema, values, Path("fuzz.yaml")), Path("fuzz.yaml"))
    state = fit(schema, root / "log.jsonl")
    state.save(root / FEATURES / STATE)
    write_json(root / FEATURES / "data.json", {"days": []})
    write_manifest(root / FEATURES, {})
    params = make_params(
        model=plain_model(embedding_dim=4, bottom_mlp=[5], top_mlp=[3], standardise=True)
    )
    model = build_model(
        params.model, state.cardinalities, len(schema.dense_features), torch.Generator()
    )
    directory = root / MODEL
    directory.mkdir(parents=True)
    (directory / "history.csv").write_text("step,split,loss,accuracy,auc\n")
    features = Artifact.open(root / FEATURES)
    save_bundle(directory, model.state_dict(), features, params, root, {"CPU": "avx2"})
    predict(directory, root / "log.jsonl", root / "scores.parquet")
    return root


def fit(schema: Schema, log: Path) -> FeatureState:
    (parsed,) = read_log(log, schema, labelled=True, short_rows="quarantine")
    fitted = fit_transforms(schema, parsed.rows.lazy())
    state = FeatureState(schema, "frequency", {}, fitted)
    for feature in schema.features:
        if feature.policy is not None:
            value = feature_value(feature, fitted.get(feature.name))
            values = frequent_values(count_values(parsed.rows.lazy(), value), 1)
            is_hash = feature.policy.name == "hash"
            state.vocabularies[feature.name] = values.clear() if is_hash else values
    return state


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the keys and indices that lead to each value in a value, the value itself first."""
    yield place
    if isinstance(value, dict):
        for key, part in value.items():
            yield from places(part, (*place, key))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from places(part, (*place, index))


def mutated(value: Any, rng: random.Random) -> Any:
    """Return a value with one part replaced, removed, added, renamed or turned into another type."""
    holder = {"all": json.loads(json.dumps(value))}
    place = ("all", *rng.choice(list(places(value))))
    parent: Any = holder
    for key in place[:-1]:
        parent = parent[key]
    key = place[-1]
    part = parent[key]
    match rng.randrange(7):
        case 0 | 1:
            parent[key] = rng.choice(ODD_VALUES)
        case 2 if len(place) > 1:
            del parent[key]
        case 3 if isinstance(part, dict):
            part[rng.choice(ODD_KEYS)] = rng.choice([*ODD_VALUES, *part.values()])
        case 3 if isinstance(part, list):
            part.insert(rng.randrange(len(part) + 1), rng.choice([*ODD_VALUES, *part]))
        case 4 if isinstance(part, dict) and part:
            part[rng.choice(ODD_KEYS)] = part.pop(rng.choice(list(part)))
        case 5:
            parent[key] = list(part.values()) if isinstance(part, dict) else {"name": part}
        case _:
            parent[key] = -part * 10**9 if isinstance(part, int | float) else str(part)[:10_000]
    return holder["all"]


def relist(directory: Path, name: str) -> None:
    """Update the hash of a file in bundle.json."""
    manifest = json.loads((directory / MANIFEST).read_text())
    manifest["files"][name] = sha256_file(directory / name)
    write_checked_json(directory / MANIFEST, manifest)


def write_bundle_manifest(directory: Path, value: Any) -> None:
    """Write bundle.json, with the hash of itself if it can have one."""
    try:
        write_checked_json(directory / MANIFEST, value)
    except (AttributeError, ValueError):  # no mapping, a NaN, or half a character
        (directory / MANIFEST).write_text(json.dumps(value))


def write_state(directory: Path, value: Any) -> None:
    """Write state.json, with the fingerprint of the changed state if it has one."""
    try:
        schema = Schema.model_validate(value["schema"])
        frames = {
            name: pl.read_parquet(directory / STATE / f"{name}.parquet") for name in value["sha256"]
        }
        vocabularies = {
            name: frames[f"vocabulary/{name}"]["value"] for name in schema.categorical_features
        }
        fitted = {
            name.removeprefix("fitted/"): frame
            for name, frame in frames.items()
            if name.startswith("fitted/")
        }
        state = FeatureState(schema, value["ids"], vocabularies, fitted)
        value["fingerprint"] = state.fingerprint
    except Exception:  # most changes have no state
        pass
    (directory / STATE / "state.json").write_text(json.dumps(value))
    relist(directory, f"{STATE}/state.json")


def check_refused_or_used(directory: Path, root: Path, what: object) -> str | None:
    """Score the log; return the message if the bundle is refused, None if it is used."""
    message = None
    try:
        predict(directory, root / "log.jsonl", root / "scores.parquet")
    except DataError as error:
        message = str(error)
    except BaseException as error:
        raise AssertionError(what) from error
    if message is not None:
        assert message.isprintable(), (what, message)
        assert len(message) < 3000, what
        return message
    assert pl.read_parquet(root / "scores.parquet")["score"].is_between(0, 1).all()
    return None


@pytest.mark.parametrize("name", [MANIFEST, f"{STATE}/state.json"])
def test_every_value_of_a_json_file(project: Path, tmp_path: Path, name: str) -> None:
    directory = Path(shutil.copytree(project / MODEL, tmp_path / "model"))
    original, manifest = (
        json.loads((directory / name).read_text()),
        (directory / MANIFEST).read_text(),
    )
    rng = random.Random(11)
    messages = set()
    for _ in range(NUM_MUTATIONS):
        value = mutated(original, rng)
        if rng.random() < 0.2:
            value = mutated(value, rng)
        (directory / MANIFEST).write_text(manifest)
        if name == MANIFEST:
            write_bundle_manifest(directory, value)
        else:
            write_state(directory, value)
        messages.add(check_refused_or_used(directory, project, value))
    assert len(messages) > NUM_MUTATIONS / 4


@pytest.mark.parametrize("name", [MANIFEST, f"{STATE}/state.json"])
def test_every_byte_range_of_a_json_file(project: Path, tmp_path: Path, name: str) -> None:
    directory = Path(shutil.copytree(project / MODEL, tmp_path / "model"))
    values = json.loads((directory / MANIFEST).read_text())
    del values[HASH_KEY]  # as in an older bundle, so that the contents are looked at
    write_json(directory / MANIFEST, values)
    original, manifest = (directory / name).read_bytes(), (directory / MANIFEST).read_text()
    rng = random.Random(12)
    for _ in range(NUM_MUTATIONS // 4):
        place = rng.randrange(len(original))
        junk = rng.choice(
            [b"", b"NaN", b"1e999", b"[" * 5000, b"\xff", b"\\ud800", b"\0", b'"', b","]
        )
        end = place + rng.choice([0, 1, 30])
        (directory / MANIFEST).write_text(manifest)
        (directory / name).write_bytes(original[:place] + junk + original[end:])
        if name != MANIFEST:
            relist(directory, name)
        check_refused_or_used(directory, project, (place, junk, end))


def without_columns(frame: pl.DataFrame) -> pl.DataFrame:
    return pl.DataFrame()


def renamed(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.rename({frame.columns[0]: "\n../x"})


def as_text(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select(pl.all().cast(pl.String), pl.lit("x").alias("more"))


def as_lists(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select(pl.all().implode())


def as_float16(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select(pl.all().cast(pl.Float32, strict=False))


def with_null(frame: pl.DataFrame) -> pl.DataFrame:
    return pl.concat([frame, frame.clear(1)])


def no_rows(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.clear()


def twice(frame: pl.DataFrame) -> pl.DataFrame:
    return pl.concat([frame, frame])


def backwards(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.reverse()


def not_a_number(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(pl.selectors.float() * float("nan"))


def infinite(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(pl.selectors.float() * float("inf"))


def one_more_column(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(pl.lit(1).alias("more"))


ODD_FRAMES: list[Callable[[pl.DataFrame], pl.DataFrame]] = [
    without_columns,
    renamed,
    as_text,
    as_lists,
    as_float16,
    with_null,
    no_rows,
    twice,
    backwards,
    not_a_number,
    infinite,
    one_more_column,
]


def test_every_parquet_file_of_the_state(project: Path, tmp_path: Path) -> None:
    files = sorted(
        path.relative_to(project / MODEL) for path in project.glob(f"{MODEL}/**/*.parquet")
    )
    assert len(files) == 9
    refused = {}
    for file in files:
        for damage in ODD_FRAMES:
            directory = Path(
                shutil.copytree(project / MODEL, tmp_path / "model", dirs_exist_ok=True)
            )
            frame = pl.read_parquet(directory / file)
            odd = damage(frame)
            odd.write_parquet(directory / file)
            state = json.loads((directory / STATE / "state.json").read_text())
            state["sha256"][str(file.relative_to(STATE).with_suffix(""))] = sha256_file(
                directory / file
            )
            write_state(directory, state)
            relist(directory, str(file))
            message = check_refused_or_used(directory, project, (file, damage))
            if not odd.equals(frame):
                refused[file.name, damage.__name__] = message
            if message and damage not in (no_rows, twice):
                assert str(file) in message or "state.json" in message
    for (name, damage_name), message in refused.items():
        if damage_name not in ("no_rows", "backwards"):
            assert message, (name, damage_name)


def test_every_parquet_file_as_bytes(project: Path, tmp_path: Path) -> None:
    rng = random.Random(13)
    for path in sorted(project.glob(f"{MODEL}/**/*.parquet")):
        file = path.relative_to(project / MODEL)
        original = path.read_bytes()
        for _ in range(12):
            directory = Path(
                shutil.copytree(project / MODEL, tmp_path / "model", dirs_exist_ok=True)
            )
            damaged = bytearray(original)
            for _ in range(rng.randint(1, 3)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            (directory / file).write_bytes(bytes(damaged[: rng.choice([None, -1, 20, 0])]))
            state = json.loads((directory / STATE / "state.json").read_text())
            state["sha256"][str(file.relative_to(STATE).with_suffix(""))] = sha256_file(
                directory / file
            )
            (directory / STATE / "state.json").write_text(json.dumps(state))
            relist(directory, f"{STATE}/state.json")
            relist(directory, str(file))
            check_refused_or_used(directory, project, (file, bytes(damaged)))


def as_yaml(value: Any, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(value, file)


def check_config(use: Callable[[], object], what: object) -> bool:
    """Return whether a file is refused; only a ConfigError is allowed."""
    message = ""
    try:
        use()
    except ConfigError as error:
        message = str(error)
    except BaseException as error:
        raise AssertionError(what) from error
    assert all(line.isprintable() for line in message.split("\n")), (what, message)
    assert len(message) < 30_000, what
    return bool(message)


def test_every_value_of_params(tmp_path: Path) -> None:
    original = read_yaml(ROOT / "params.yaml")
    rng = random.Random(14)
    num_refused = 0
    for _ in range(NUM_MUTATIONS // 2):
        value = mutated(original, rng)
        as_yaml(value, tmp_path / "params.yaml")
        num_refused += check_config(
            lambda: check_against_schema(load_params(tmp_path / "params.yaml")), value
        )
    assert num_refused > NUM_MUTATIONS / 4


def test_every_value_of_a_schema(tmp_path: Path) -> None:
    originals = [read_yaml(path) for path in sorted(SCHEMAS.glob("*.yaml"))]
    originals.append(
        {
            "format": {"kind": "json_lines", "null_tokens": TOKENS},
            "columns": COLUMNS,
            "derived": DERIVED,
        }
    )
    rng = random.Random(15)
    path = tmp_path / "mine.yaml"

    def use(value: Any) -> None:
        schema = check_schema(check(Schema, value, path), path)
        schema.with_dense_transform("floor_ln2")

    num_refused = sum(
        check_config(lambda value=value: use(value), value)
        for value in (mutated(rng.choice(originals), rng) for _ in range(2 * NUM_MUTATIONS))
    )
    assert num_refused > NUM_MUTATIONS


def test_every_byte_range_of_yaml(tmp_path: Path) -> None:
    texts = [
        path.read_bytes() for path in [*sorted(PRESETS.glob("*.yaml")), SCHEMAS / "avazu.yaml"]
    ]
    rng = random.Random(16)
    junk = [
        b"&a ",
        b"*a ",
        b"\t",
        b"- ",
        b": ",
        b"[",
        b"{",
        b"? ",
        b"!!set ",
        b"<<: ",
        b"\xff",
        b"\0",
    ]
    junk += [
        b"'",
        b'"',
        b"#",
        b"\n",
        b"--- ",
        b"...\n",
        b"%YAML 3.0\n",
        b"| \n",
        b"\xe2\x80\xa8",
        b"1: ",
    ]
    for _ in range(NUM_MUTATIONS):
        text = rng.choice(texts)
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(len(text))
            text = text[:place] + rng.choice(junk) + text[place + rng.choice([0, 1, 9]) :]
        (tmp_path / "a.yaml").write_bytes(text)
        check_config(lambda: read_yaml(tmp_path / "a.yaml"), text)
