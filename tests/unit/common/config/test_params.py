"""A fault in params.yaml or a schema is an error that names file, key and value."""

import json
from collections.abc import Iterator
from math import nan
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from common.config.base import Strict
from common.config.loading import ConfigError, check
from common.config.model import Model
from common.config.params import (
    PRESETS,
    RENAMED,
    Features,
    Params,
    Serve,
    load_params,
    params_json_schema,
    read_preset,
)
from features.schema.check_params import check_against_schema, check_column_dims
from features.schema.schema import SCHEMAS, Schema, check_schema, load_schema
from tests.factories.list_logs import schema_of
from tests.factories.support import ROOT, make_params, plain_model

TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")


def changed(directory: Path, old: str, new: str) -> Path:
    """Write a copy of the shipped params.yaml with one piece of text replaced."""
    assert TEXT.count(old) == 1, f"params.yaml contains {old!r} {TEXT.count(old)} times"
    path = directory / "params.yaml"
    path.write_text(TEXT.replace(old, new), encoding="utf-8")
    return path


def test_shipped_params_load() -> None:
    params = load_params(ROOT / "params.yaml")
    assert params.data.source == "sample"
    assert params.model.embedding_dim == 16


@pytest.mark.parametrize(
    ("old", "new", "key", "found"),
    [
        (
            "min_count: 2",
            "min_cuont: 10",
            "features.min_cuont",
            "no such key; is it features.min_count?",
        ),
        ("min_count: 2", "", "features.min_count", "missing"),
        ("min_count: 2", "min_count: ten", "features.min_count", "found 'ten'"),
        ("min_count: 2", "min_count: 0", "features.min_count", "found 0"),
        ("min_count: 2", f"min_count: {2**63}", "features.min_count", f"found {2**63}"),
        ("days: 7 ", "days: 10000000000 ", "data.days", "found 10000000000"),
        ("valid_days: 0.5", "valid_days: .inf", "features.split.valid_days", "found inf"),
        ("valid_days: 0.5", "valid_days: 1e999", "features.split.valid_days", "found inf"),
        ("min_count: 2", "min_count: 2.0", "features.min_count", "found 2.0"),
        ("test_first: false", "test_first: 0", "features.split.test_first", "found 0"),
        ("test_first: false", "test_first: no", "features.split.test_first", "found 'no'"),
        (
            "ids: frequency",
            "ids: random",
            "features.ids",
            "'frequency', 'appearance' or 'padded' (found 'random')",
        ),
        (
            "short_rows: quarantine",
            "short_rows: drop",
            "ingest.short_rows",
            "'quarantine' or 'fill' (found 'drop')",
        ),
        ("max_bad_fraction: 0.01", "max_bad_fraction: 1.5", "ingest.max_bad_fraction", "found 1.5"),
        (
            "address: null            # address",
            "address: scheduler  # address",
            "dask.address",
            "found 'scheduler'",
        ),
        (
            "address: null            # HOST:PORT",
            "address: head            # HOST:PORT",
            "train.servers.address",
            "found 'head'",
        ),
        ("num_rows: 300000", "num_rows: -1", "sample.num_rows", "found -1"),
        ("[512, 256, 64]", "[512, 0]", "model.bottom_mlp.1", "found 0"),
        ("[512, 256, 64]", "512", "model.bottom_mlp", "found 512"),
        (
            "{name: adam, lr: 0.001}",
            "{name: adamw, lr: 0.001}",
            "train.dense_optimizer.name",
            "found 'adamw'",
        ),
        ("{name: adam, lr: 0.001}", "{name: adam}", "train.dense_optimizer.lr", "missing"),
        (
            "{name: adam, lr: 0.001}",
            "{name: adam, lr: .nan}",
            "train.dense_optimizer.lr",
            "found nan",
        ),
        (
            "{name: adam, lr: 0.001}",
            "{name: adam, lr: .inf}",
            "train.dense_optimizer.lr",
            "found inf",
        ),
        ("source: sample", "source: 7", "data.source", "found 7"),
        ("until: null", "until: 7", "data.until", "found 7"),
        (
            "significance_level: 0.05",
            "significance_level: 0.5",
            "promote.significance_level",
            "found 0.5",
        ),
        (
            "significance_level: 0.05",
            "significance_level: 0",
            "promote.significance_level",
            "found 0",
        ),
        ("low: 0.8", "low: 1.3", "promote.calibration", "low 1.3 is not below high 1.25"),
        ("evaluate:", "evaluation:", "evaluation", "no such key; is it evaluate?"),
    ],
)
def test_a_fault_names_file_key_and_value(
    tmp_path: Path, old: str, new: str, key: str, found: str
) -> None:
    path = changed(tmp_path, old, new)
    with pytest.raises(ConfigError) as error:
        load_params(path)
    assert f"{path}: {key}: " in str(error.value)
    assert found in str(error.value)


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_parameter_under_its_old_name_is_refused_with_its_new_one(
    tmp_path: Path, old: str, new: str
) -> None:
    old, new = old.replace("*", "drift"), new.replace("*", "drift")
    section = old.partition(".")[0]
    start = TEXT.index(f"\n{section}:")
    if section == "gate":
        start = TEXT.index("\n  drift:", start)
    old_key, new_key = f"{old.rpartition('.')[2]}:", f"{new.rpartition('.')[2]}:"
    path = tmp_path / "params.yaml"
    if section == new.partition(".")[0]:
        text = TEXT[:start] + TEXT[start:].replace(new_key, old_key, 1)
    else:  # it is in another section now
        text = TEXT.replace(f"\n{section}:\n", f"\n{section}:\n  {old_key} null\n")
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        load_params(path)
    message = f"{path}: {old}: this parameter is now called {new}; rename it"
    assert message in str(error.value).splitlines()


def test_every_fault_is_named_at_once(tmp_path: Path) -> None:
    path = changed(tmp_path, "min_count: 2", "min_count: 0\n  min_cuont: 1")
    with pytest.raises(ConfigError) as error:
        load_params(path)
    assert [line.split(": ")[1] for line in str(error.value).splitlines()] == [
        "features.min_count",
        "features.min_cuont",
    ]


@pytest.mark.parametrize(("text", "value"), [("1e-3", 0.001), ("1", 1.0), ("2.5E-4", 0.00025)])
def test_a_rate_in_any_notation_is_a_number(tmp_path: Path, text: str, value: float) -> None:
    lr = load_params(changed(tmp_path, "lr: 0.001", f"lr: {text}")).train.dense_optimizer.lr
    assert lr == value
    assert isinstance(lr, float)


@pytest.mark.parametrize("text", ["data: [unclosed", "data: 1\ndata: 2\n", "\tdata: 1"])
def test_text_that_is_not_yaml(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"params\.yaml is not YAML: .*") as error:
        load_params(path)
    assert "line 1" in str(error.value) or "line 2" in str(error.value)


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(b"data: \xff\xfe")
    with pytest.raises(ConfigError, match=r"params\.yaml is not YAML"):
        load_params(path)


@pytest.mark.parametrize(
    ("text", "found"), [("", "NoneType"), ("- 1\n- 2\n", "list"), ("hello", "str")]
)
def test_yaml_that_is_not_a_mapping(tmp_path: Path, text: str, found: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"params\.yaml: expected a mapping, found {found}"):
        load_params(path)


def test_a_missing_file_says_where_to_run(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"params\.yaml not found; run this in the repository's root"
    ):
        load_params(tmp_path / "params.yaml")


def with_preset(directory: Path, name: str) -> Path:
    """Write a copy of params.yaml with a preset's name in place of the section `features`."""
    start, end = TEXT.index("features:"), TEXT.index("gate:")
    path = directory / "params.yaml"
    path.write_text(f"{TEXT[:start]}features: {name}\n{TEXT[end:]}", encoding="utf-8")
    return path


@pytest.mark.parametrize("name", sorted(path.stem for path in PRESETS.glob("*.yaml")))
def test_a_preset_replaces_the_section(tmp_path: Path, name: str) -> None:
    assert load_params(with_preset(tmp_path, name)).features == check(
        Features, read_preset(name), PRESETS / f"{name}.yaml"
    )


def test_the_preset_of_the_reference() -> None:
    preset = read_preset("dlrm-kaggle")
    assert (preset["ids"], preset["min_count"], preset["split"]["test_first"]) == (
        "appearance",
        1,
        True,
    )


@pytest.mark.parametrize("name", ["dlrm-terabyte", "../presets/dlrm-kaggle", "''"])
def test_an_unknown_preset_is_refused_with_the_names_of_all(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        ConfigError, match=r"features: there is no preset .*; the presets are .*dlrm-kaggle"
    ) as error:
        load_params(with_preset(tmp_path, name))
    assert repr(name.strip("'")) in str(error.value)


@pytest.mark.parametrize("name", sorted(path.stem for path in SCHEMAS.glob("*.yaml")))
def test_every_schema_loads(name: str) -> None:
    schema = load_schema(name)
    assert {schema.label, *schema.dense, *schema.categorical, *schema.time} <= {*schema.names}
    assert {*schema.dense_features, *schema.categorical_features} == {
        feature.name for feature in schema.features
    }


def test_criteo_is_a_label_13_dense_and_26_categorical_columns_in_file_order() -> None:
    schema = load_schema("criteo")
    assert schema.names == [
        "label",
        *(f"I{i}" for i in range(1, 14)),
        *(f"C{i}" for i in range(1, 27)),
    ]
    assert (len(schema.dense), len(schema.categorical)) == (13, 26)


def test_an_unknown_schema_is_refused_with_the_names_of_all() -> None:
    with pytest.raises(
        ConfigError,
        match=r"data\.schema: 'critoe' is no schema; known: .*criteo.* \(features/schema/NAME\.yaml\)",
    ):
        load_schema("critoe")


def test_a_model_is_checked_against_the_columns_of_the_preset() -> None:
    """The preset bars-x4 makes categories of the dense columns."""
    rank = {"name": "cross", "layers": 1, "rank": 450}
    check_against_schema(
        make_params(
            features=read_preset("bars-x4"),
            evaluate__frequency_bucket_column="I1",
            model__interaction=rank,
        )
    )
    with pytest.raises(ConfigError, match="rank is 450, but the matrices are 432 wide"):
        check_against_schema(make_params(model__interaction=rank))


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ({"C27": 4}, r"dims: 'C27' is no categorical feature; there are: C1, C2, .*C26$"),
        ({"I1": 4}, r"dims: 'I1' is no categorical feature; there are: C1, "),
        (
            dict.fromkeys((f"C{k}" for k in range(1, 27)), 0),
            "dims: every categorical feature has dim 0",
        ),
    ],
)
def test_dims_are_checked_against_the_columns(dims: dict[str, int], message: str) -> None:
    tables = {"name": "per_column", "dims": dims}
    with pytest.raises(ConfigError, match=rf"params\.yaml: model\.tables\.{message}"):
        check_against_schema(make_params(model__tables=tables))


def test_the_columns_that_are_left_out_have_no_vector() -> None:
    """The model has 13 vectors of 16 numbers in place of 27, so a cross matrix is 208 wide."""
    tables = {"name": "per_column", "dims": {f"C{k}": 0 for k in range(1, 15)}}
    rank = {"name": "cross", "layers": 1, "rank": 208}
    check_against_schema(make_params(model__tables=tables, model__interaction=rank | {"rank": 207}))
    with pytest.raises(ConfigError, match="rank is 208, but the matrices are 208 wide"):
        check_against_schema(make_params(model__tables=tables, model__interaction=rank))


def test_columns_of_one_table_have_one_dim_or_are_left_out() -> None:
    schema = schema_of("json_lines")
    widths = {"embedding_dim": 8, "bottom_mlp": [], "top_mlp": []}

    def check_dims(**dims: int) -> None:
        tables = {"name": "per_column", "dims": dims}
        check_column_dims(Model.model_validate(plain_model(**widths, tables=tables)), schema)

    check_dims(item=0, viewed=4, tags=3)
    check_dims(item=4, viewed=4)
    with pytest.raises(
        ConfigError, match=r"of table item read the same rows, .*: viewed 8, item 4; give them one"
    ):
        check_dims(item=4)


def test_a_key_is_named_as_the_file_has_it() -> None:
    """The names that pydantic adds, here the types of a union, are left out."""

    class Cut(Strict):
        by: str | list[int]

    with pytest.raises(ConfigError) as error:
        check(Cut, {"by": [3, "day"]}, Path("cut.yaml"))
    assert [line.rpartition(": ")[0] for line in str(error.value).splitlines()] == [
        "cut.yaml: by",
        "cut.yaml: by.1",
    ]


FORMAT = {"kind": "text", "separator": ",", "quote": None, "header": True, "null_tokens": [""]}
LABEL = {"kind": "label", "names": ["click"]}
DENSE = {"kind": "dense", "names": ["age"], "parse": "integer", "transform": "log1p"}
CATEGORICAL = {"kind": "categorical", "names": ["site"], "parse": "hex32", "policy": "vocabulary"}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([LABEL, DENSE, CATEGORICAL, {**DENSE, "names": ["site"]}], "column named twice: site"),
        ([DENSE, CATEGORICAL], "one label expected, found \\['dense', 'categorical'\\]"),
        (
            [LABEL, LABEL | {"names": ["bought"]}, DENSE, CATEGORICAL],
            "one label expected, found \\['label', 'label'",
        ),
        ([LABEL, CATEGORICAL], "two features at least expected"),
        ([LABEL, DENSE, DENSE | {"names": ["size"]}], "one of them categorical"),
        ([LABEL, DENSE, CATEGORICAL | {"names": [""]}], "'': an empty name; such a column can be"),
        ([LABEL, DENSE, CATEGORICAL | {"names": ["*"]}], "'\\*': a name that means other columns"),
        ([LABEL, DENSE, CATEGORICAL | {"names": ["^a.*$"]}], "a name that means other columns"),
        ([LABEL, DENSE, CATEGORICAL | {"names": ["a\tb"]}], "characters that cannot be printed"),
        ([LABEL | {"positive": ["yes"]}, DENSE, CATEGORICAL], "columns.0: negative is missing"),
        ([LABEL | {"negative": ["no"]}, DENSE, CATEGORICAL], "columns.0: positive is missing"),
        (
            [LABEL | {"positive": [1], "negative": ["1.0"]}, DENSE, CATEGORICAL],
            "columns.0: '1' is in positive and in negative",
        ),
        (
            [LABEL | {"positive": [1.5], "negative": [0]}, DENSE, CATEGORICAL],
            "columns.0.positive.0: Input should be a valid string",
        ),
        (
            [LABEL, DENSE | {"transform": "floor_ln2"}, CATEGORICAL],
            "age: floor_ln2 makes a categorical feature: give it one",
        ),
        (
            [LABEL, DENSE | {"policy": "vocabulary"}, CATEGORICAL],
            "age: log1p makes a dense feature: remove its policy",
        ),
        ([LABEL, DENSE | {"transform": "hour"}, CATEGORICAL], "age: hour takes 1 time column"),
        (
            [LABEL, DENSE | {"transform": {"name": "clip", "low": 0}}, CATEGORICAL],
            "transform.high: missing",
        ),
        ([LABEL, DENSE | {"transform": "clip"}, CATEGORICAL], "columns.1.transform.high: missing"),
        ([LABEL, DENSE, CATEGORICAL | {"policy": "hash"}], "hash with 0 buckets"),
        (
            [LABEL, DENSE, CATEGORICAL | {"policy": {"name": "vocabulary", "buckets": 7}}],
            "vocabulary with 7 buckets",
        ),
        (
            [LABEL, DENSE | {"transform": {"name": "clip", "low": 5, "high": 4}}, CATEGORICAL],
            "low 5.0 is above high 4.0",
        ),
        (
            [LABEL, DENSE | {"transform": {"name": "clip", "low": 0, "high": 1e300}}, CATEGORICAL],
            "transform.high: .*found 1e\\+300",
        ),
        (
            [LABEL, DENSE | {"transform": {"name": "clip", "low": nan, "high": 1}}, CATEGORICAL],
            "transform.low: .*finite number.*found nan",
        ),
        (
            [LABEL, DENSE | {"transform": {"name": "quantile", "buckets": 10**10}}, CATEGORICAL],
            "transform.buckets: .*found 10000000000",
        ),
        (
            [LABEL, DENSE, CATEGORICAL | {"policy": {"name": "hash", "buckets": 10**10}}],
            "policy.buckets: .*found 10000000000",
        ),
        ([LABEL, DENSE, CATEGORICAL | {"policy": "hsah"}], "columns.2.policy: .*'hsah'"),
        ([LABEL, DENSE, CATEGORICAL | {"kind": "sparse"}], "columns.2.kind: .*sparse"),
    ],
)
def test_an_impossible_schema_names_the_file_and_the_fault(
    columns: list[dict[str, object]], message: str
) -> None:
    values = {"format": FORMAT, "columns": columns}
    path = Path("mine.yaml")
    with pytest.raises(ConfigError, match=rf"mine\.yaml: .*{message}"):
        check_schema(check(Schema, values, path), path)


def test_a_time_pattern_is_printable() -> None:
    columns = [
        LABEL,
        DENSE,
        CATEGORICAL,
        {"kind": "time", "names": ["at"], "parse": "%Y\n\x1b[31m"},
    ]
    with pytest.raises(ConfigError, match=r"columns\.3: '%Y\\n\\x1b\[31m' has characters that"):
        check(Schema, {"format": FORMAT, "columns": columns}, Path("mine.yaml"))


@pytest.mark.parametrize("pattern", ["%Y-%m-%d %Q", "%y%m%d:%M", "%"])
def test_a_time_pattern_that_is_refused(pattern: str) -> None:
    columns = [LABEL, DENSE, CATEGORICAL, {"kind": "time", "names": ["at"], "parse": pattern}]
    with pytest.raises(
        ConfigError, match=r"columns\.3: .* is no pattern of a point in time \([^\n]*\)$"
    ):
        check(Schema, {"format": FORMAT, "columns": columns}, Path("mine.yaml"))


@pytest.mark.parametrize(
    ("time", "message"),
    [
        ({"parse": "epoch"}, "'epoch' is no pattern .* none of unix, unix_ms, .*, iso8601"),
        ({"parse": "iso8601", "zone": "Berlin"}, "zone 'Berlin' is no time zone; give a name such"),
        ({"parse": "unix_ms", "zone": "Europe/Berlin"}, "unix_ms counts from 1970 in UTC"),
        ({"parse": "%Y-%m-%d %H:%M %z", "zone": "Europe/Berlin"}, "has the offset .* remove zone"),
    ],
)
def test_a_time_that_cannot_be_read(time: dict[str, str], message: str) -> None:
    columns = [LABEL, DENSE, CATEGORICAL, {"kind": "time", "names": ["at"]} | time]
    with pytest.raises(ConfigError, match=rf"columns\.3: .*{message}"):
        check(Schema, {"format": FORMAT, "columns": columns}, Path("mine.yaml"))


@pytest.mark.parametrize("pattern", ["%Y-%m-%d %H:%M:%S,%f", "%Y%m%d%H%M%S%f", "%%%f%Y-%m-%d"])
def test_a_fraction_of_a_second_without_a_point_is_refused(pattern: str) -> None:
    columns = [LABEL, DENSE, CATEGORICAL, {"kind": "time", "names": ["at"], "parse": pattern}]
    with pytest.raises(
        ConfigError, match=r"columns\.3: .*%f is allowed after a point only \(\.%f\)"
    ):
        check(Schema, {"format": FORMAT, "columns": columns}, Path("mine.yaml"))


@pytest.mark.parametrize(
    "pattern",
    [
        *("%y%m%d%H", "%Y-%m-%d", "%d/%b/%Y:%H:%M:%S %z", "%Y-%m-%dT%H:%M:%S%.f", "unix"),
        *("unix_ms", "unix_us", "unix_ns", "iso8601"),
        *("%Y-%m-%dT%H:%M:%S.%f", "%H:%M:%S,%3f %Y-%m-%d", "%%f%Y-%m-%d", "%Y-%m-%d%%.%f"),
    ],
)
def test_time_patterns(pattern: str) -> None:
    columns = [LABEL, DENSE, CATEGORICAL, {"kind": "time", "names": ["at"], "parse": pattern}]
    assert check(Schema, {"format": FORMAT, "columns": columns}, Path("mine.yaml")).time == ["at"]


@pytest.mark.parametrize("separator", ["\n", "\r", '"', "é", ""])
def test_a_separator_that_is_refused(separator: str) -> None:
    values = {
        "format": FORMAT | {"separator": separator, "quote": '"'},
        "columns": [LABEL, DENSE, CATEGORICAL],
    }
    with pytest.raises(ConfigError, match=r"format(\.separator)?: "):
        check(Schema, values, Path("mine.yaml"))


@pytest.mark.parametrize(
    ("derived", "message"),
    [
        ({"name": "age", "transform": "log1p", "of": ["age"]}, "column named twice: age"),
        (
            {"name": "pair", "transform": "cross", "of": ["site"], "policy": "vocabulary"},
            "pair: cross takes 2 categorical",
        ),
        (
            {"name": "pair", "transform": "cross", "of": ["site", "app"], "policy": "vocabulary"},
            "pair: app is no column",
        ),
        (
            {"name": "pair", "transform": "cross", "of": ["site", "age"], "policy": "vocabulary"},
            "pair: cross takes 2 categorical",
        ),
        (
            {"name": "pair", "transform": "eval", "of": ["site"]},
            "derived.0.transform.name: .*'eval'",
        ),
    ],
)
def test_an_impossible_derived_feature(derived: dict[str, object], message: str) -> None:
    values = {"format": FORMAT, "columns": [LABEL, DENSE, CATEGORICAL], "derived": [derived]}
    with pytest.raises(ConfigError, match=rf"mine\.yaml: .*{message}"):
        check_schema(check(Schema, values, Path("mine.yaml")), Path("mine.yaml"))


def test_all_dense_columns_under_another_transform() -> None:
    schema = load_schema("criteo")
    bucketed = schema.with_dense_transform("floor_ln2")
    assert bucketed.dense_features == []
    assert bucketed.categorical_features == [*schema.dense, *schema.categorical]
    assert schema.with_dense_transform("declared") is schema
    assert schema.with_dense_transform("log1p").features == schema.features


def properties(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the declaration of every parameter of a JSON Schema."""
    for name, model in schema["$defs"].items():
        for key, declaration in model["properties"].items():
            yield f"{name}.{key}", declaration


def test_every_parameter_has_a_description() -> None:
    without = [
        name
        for name, declaration in properties(params_json_schema())
        if not declaration.get("description", "").endswith(".")
    ]
    assert without == []


def test_the_schema_file_is_up_to_date() -> None:
    path = ROOT / "docs/params.schema.json"
    text = json.dumps(params_json_schema(), indent=2) + "\n"
    assert path.read_text(encoding="utf-8") == text, (
        "run `clickmill params --schema > docs/params.schema.json`"
    )
    assert TEXT.startswith(f"# yaml-language-server: $schema={path.relative_to(ROOT)}\n")


def test_the_schema_has_the_same_keys_as_the_models() -> None:
    """An editor accepts what `load_params` accepts: by the names in the file, or a preset."""
    schema = params_json_schema()
    assert schema["required"] == list(Params.model_fields)
    assert "schema" in schema["$defs"]["Data"]["required"]
    section, preset = schema["properties"]["features"]["anyOf"]
    assert section == {"$ref": "#/$defs/Features"}
    assert preset["enum"] == sorted(path.stem for path in PRESETS.glob("*.yaml"))


def test_home_in_the_folder_of_a_warm_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for value, expected in {
        "~/models/v1": Path("/home/me/models/v1"),
        "runs/models/v1": Path("root/runs/models/v1"),
        None: None,
    }.items():
        train = make_params(train__warm_start_from=value).train
        assert train.warm_start_dir(Path("root")) == expected


@pytest.mark.parametrize(
    ("request_log", "log_key", "missing"), [("logs", None, "log_key"), (None, "id", "request_log")]
)
def test_a_request_log_needs_a_key(
    request_log: str | None, log_key: str | None, missing: str
) -> None:
    with pytest.raises(ValidationError, match=f"{missing} is null: served rows find their labels"):
        Serve(request_log=request_log, log_key=log_key)
    assert Serve(request_log=None, log_key=None).request_log_dir(Path("root")) is None
    found = Serve(request_log="../logs", log_key="id").request_log_dir(Path("root"))
    assert found == Path("root/../logs")
