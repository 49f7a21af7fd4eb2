"""Predict as people call it: several logs, pipes, the three formats, and columns that are copied."""

import gzip
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
from pyarrow import orc

from common.bundle_layout import MODEL, MODEL_VERSION_KEY, version_of
from common.files import DataError
from common.parquet import ParquetWriter
from tests.factories.list_logs import schema_of
from tests.factories.models import NUM_ROWS, log_lines, make_bundle, make_project, small_params
from tests.factories.support import make_features, make_params, plain_model
from training.inference import input_logs
from training.inference.copied_columns import check_copied
from training.inference.predict import ID, predict

CLICKMILL = str(Path(sys.executable).with_name("clickmill"))
LINES = log_lines(NUM_ROWS, 4)
TEXT = ("\n".join(LINES[:500]) + "\n").encode()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for logs in Criteo's format, which have no header."""
    root = tmp_path_factory.mktemp("predict")
    make_bundle(root, make_project(root, LINES))
    return root / MODEL


@pytest.fixture(scope="module")
def scores(model: Path, tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    """The scores of TEXT."""
    folder = tmp_path_factory.mktemp("scores")
    (folder / "log.tsv").write_bytes(TEXT)
    predict(model, folder / "log.tsv", folder / "scores.parquet")
    return pl.read_parquet(folder / "scores.parquet")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.tsv"
    path.write_bytes(TEXT)
    return path


def read(path: Path) -> pl.DataFrame:
    """Read scores of any format."""
    if path.suffix == ".parquet":
        return pl.read_parquet(path)
    if path.suffix == ".csv":
        return pl.read_csv(path, schema_overrides={"line": pl.UInt64, "score": pl.Float32})
    return pl.read_ndjson(path, schema_overrides={"line": pl.UInt64, "score": pl.Float32})


def clickmill(*arguments: object, **options: Any) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run([CLICKMILL, *map(str, arguments)], capture_output=True, **options)


@pytest.mark.parametrize("ending", ["csv", "CSV", "jsonl", "ndjson", "parquet"])
def test_the_ending_is_the_format(
    model: Path, log: Path, scores: pl.DataFrame, ending: str
) -> None:
    output = log.with_name(f"scores.{ending}")
    predict(model, log, output)
    assert read(output.rename(output.with_suffix(f".{ending.lower()}"))).equals(scores)


def test_the_bytes_of_parquet_scores(model: Path, log: Path) -> None:
    """The scores of one log have had these columns, row groups and metadata from the beginning."""
    output, expected = log.with_name("scores.parquet"), log.with_name("expected.parquet")
    predict(model, log, output)
    columns = pl.Schema({"line": pl.UInt64, "score": pl.Float32})
    metadata = {MODEL_VERSION_KEY: version_of(model)}
    with ParquetWriter(expected, columns, metadata=metadata) as writer:
        writer.write(pl.read_parquet(output))
    assert output.read_bytes() == expected.read_bytes()


@pytest.mark.parametrize("name", ["scores.txt", "scores", "scores.json", "scores.csv.gz"])
def test_another_ending_is_refused(model: Path, log: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"\(\.csv, \.jsonl, \.ndjson, \.parquet\), found"):
        predict(model, log, log.with_name(name))
    assert [path.name for path in log.parent.iterdir()] == ["log.tsv"]


def test_a_format_is_for_names_without_an_ending(
    model: Path, log: Path, scores: pl.DataFrame
) -> None:
    predict(model, log, log.with_name("scores"), output_format="jsonl")
    assert read(log.with_name("scores").rename(log.with_name("renamed.jsonl"))).equals(scores)
    with pytest.raises(DataError, match="the ending means csv, but --format is parquet"):
        predict(model, log, log.with_name("scores.csv"), output_format="parquet")


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_several_files(
    model: Path, log: Path, scores: pl.DataFrame, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    other = log.with_name("other.tsv.gz")
    other.write_bytes(gzip.compress("\n".join(LINES[100:110]).encode()))
    output = log.with_name(f"scores.{ending}")
    predict(model, [other, log], output)
    found = read(output)
    assert found.columns == ["file", "line", "score"]
    assert found["file"].to_list() == [str(other)] * 10 + [str(log)] * 500
    assert found["line"].to_list() == [*range(1, 11), *range(1, 501)]
    assert found["score"].to_list() == [*scores["score"][100:110], *scores["score"]]
    assert "510 labelled rows of 2 files scored by model" in capsys.readouterr().out


def test_a_folder_and_a_pattern_are_read_in_natural_order(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "[x]"  # which exists, so it is no pattern
    folder.mkdir()
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "day_1.tsv").write_text("wrong\n")
    for day in (10, 9, 1):
        (folder / f"day_{day}.tsv").write_text("\n".join(LINES[day : day + 3]) + "\n")
    for name in (".hidden.tsv", "notes.md", "day_1.tsv.truth.parquet"):
        (folder / name).write_text("no log")
    days = [str(folder / f"day_{day}.tsv") for day in (1, 9, 10)]
    for named in (folder, folder / "day_*"):
        predict(model, named, tmp_path / "scores.csv")
        assert read(tmp_path / "scores.csv")["file"].unique(maintain_order=True).to_list() == days
    with pytest.raises(DataError, match="named twice"):
        predict(model, [folder, folder / "day_9.tsv"], tmp_path / "scores.csv")
    # A folder with one file has the same columns, so that a script can rely on them.
    for day in (9, 10):
        (folder / f"day_{day}.tsv").unlink()
    predict(model, folder, tmp_path / "scores.csv")
    assert read(tmp_path / "scores.csv").columns == ["file", "line", "score"]


def test_a_name_with_brackets_is_the_file_itself(model: Path, tmp_path: Path) -> None:
    (tmp_path / "day_1.tsv").write_text("wrong\n")
    (tmp_path / "day_[1].tsv").write_bytes(TEXT)
    predict(model, tmp_path / "day_[1].tsv", tmp_path / "scores.csv")
    assert read(tmp_path / "scores.csv").height == 500


def test_names_that_are_not_utf_8(
    model: Path, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = Path(os.fsdecode(os.fsencode(log.parent) + b"/a\xff=%\n.tsv"))
    output = Path(os.fsdecode(os.fsencode(log.parent) + b"/out\xff.csv"))
    log.rename(odd)
    predict(model, odd.parent, output)
    (found,) = pl.read_csv(output.read_bytes())["file"].unique()
    assert found == f"{log.parent}/a\\xff=%\n.tsv"
    assert f"{log.parent}/out\\xff.csv" in capsys.readouterr().out


def test_bad_rows_of_several_files_name_the_file(model: Path, log: Path) -> None:
    other = log.with_name("other.tsv")
    other.write_text(f"{LINES[0]}\n1\t2\n")
    predict(model, [log, other], log.with_name("scores.csv"))
    bad = pl.read_parquet(log.with_name("scores.bad_rows.parquet"))
    assert bad.select("file", "line", "raw").rows() == [(str(other), 2, b"1\t2")]


def test_files_without_rows_are_named(
    model: Path, log: Path, scores: pl.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = log.with_name("empty.tsv")
    empty.touch()
    output = log.with_name("scores.parquet")
    predict(model, [empty, log], output)
    assert f"warning: {empty} is empty (0 bytes)" in capsys.readouterr().out
    assert pl.read_parquet(output).drop("file").equals(scores)
    for named in ([empty], [empty, log.with_name("empty.tsv.gz")]):
        named[-1].touch()
        with pytest.raises(DataError, match=r"--input .*empty\.tsv: the file is empty"):
            predict(model, named, output)


def test_the_output_must_not_be_an_input_or_in_the_model(model: Path, log: Path) -> None:
    os.link(log, log.with_name("scores.csv"))
    manifest = (model / "bundle.json").read_bytes()
    with pytest.raises(DataError, match="this is the input"):
        predict(model, log, log)
    with pytest.raises(DataError, match="this is the input"):
        predict(model, log, log.with_name("scores.csv"))
    for name in ("bundle.json", "scores.csv"):
        with pytest.raises(DataError, match="inside the model"):
            predict(model, log, model / name)
    assert log.read_bytes() == TEXT
    assert (model / "bundle.json").read_bytes() == manifest


def test_the_file_of_bad_rows_obeys_the_same_rules(model: Path, log: Path) -> None:
    bad = log.with_name("scores.bad_rows.parquet")
    os.link(log, bad)
    with pytest.raises(DataError, match=r"scores\.bad_rows\.parquet: this is the input"):
        predict(model, log, log.with_name("scores.csv"))
    bad.unlink()
    bad.symlink_to("kept.parquet")
    log.write_bytes(TEXT + b"1\t2\n")
    predict(model, log, log.with_name("scores.csv"))
    assert bad.is_symlink()
    assert pl.read_parquet(log.with_name("kept.parquet")).height == 1
    bad.unlink()
    bad.symlink_to("scores.csv")
    with pytest.raises(DataError, match="the file of malformed rows, is a link to it"):
        predict(model, log, log.with_name("scores.csv"))


def test_a_pipe_in_and_a_pipe_out(model: Path, tmp_path: Path, scores: pl.DataFrame) -> None:
    rows, out = tmp_path / "rows", tmp_path / "out"
    got: list[bytes] = []
    for pipe in (rows, out):
        os.mkfifo(pipe)
    threads = [
        threading.Thread(target=lambda: rows.write_bytes(gzip.compress(TEXT))),
        threading.Thread(target=lambda: got.append(out.read_bytes())),
    ]
    for thread in threads:
        thread.start()
    predict(model, rows, out, output_format="parquet")
    for thread in threads:
        thread.join()
    assert pl.read_parquet(io.BytesIO(got[0])).equals(scores)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "rows"]


def test_an_error_names_the_pipe_and_not_its_copy(model: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows")
    thread = threading.Thread(target=lambda: (tmp_path / "rows").write_bytes(b"a\tb\n"))
    thread.start()
    with pytest.raises(DataError, match=r"^/.*/rows: 40 columns with the label"):
        predict(model, tmp_path / "rows", tmp_path / "scores.csv")
    thread.join()


def test_a_pipe_must_fit_beside_other_temporary_files(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_logs.shutil, "disk_usage", lambda _: SimpleNamespace(free=2000))
    os.mkfifo(tmp_path / "rows")

    def write() -> None:
        with suppress(BrokenPipeError):
            (tmp_path / "rows").write_bytes(TEXT)

    thread = threading.Thread(target=write)
    thread.start()
    with pytest.raises(DataError, match=r"more than 1,000 bytes, half of what is free .* TMPDIR"):
        predict(model, tmp_path / "rows", tmp_path / "scores.csv")
    thread.join()


def test_a_device_is_no_input(model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a file, a folder or a pipe expected, found a device"):
        predict(model, Path("/dev/zero"), tmp_path / "scores.csv")


def test_standard_input_and_output(model: Path, scores: pl.DataFrame, tmp_path: Path) -> None:
    """The log lines go to standard error; a bad row is reported there, because there is no file."""
    for arguments in (["--input", "-", "--output", "-"], ["/dev/stdin", "--output", "/dev/stdout"]):
        done = clickmill(
            "predict", "--model", model, *arguments, input=TEXT + b"1\t2\n", cwd=tmp_path
        )
        found = pl.read_csv(
            io.BytesIO(done.stdout), schema_overrides={"line": pl.UInt64, "score": pl.Float32}
        )
        assert found.equals(scores)
        assert b"500 labelled rows scored by model" in done.stderr
        assert b"warning: 1 malformed rows have no score; the first: " in done.stderr
        assert b"line 501: 2 columns, 40 expected" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_shell_redirections_and_words(model: Path, log: Path, scores: pl.DataFrame) -> None:
    """A pattern that the shell expands after --input, `<`, and `>>` to the input itself."""
    other = log.with_name("other.tsv")
    other.write_text(f"{LINES[0]}\n")
    done = clickmill("predict", "--model", model, "--output", "-", "--input", log, other)
    assert done.stdout.count(b"\n") == 502
    with log.open("rb") as stdin:
        done = clickmill("predict", "--model", model, "--output", "-", "-", stdin=stdin)
    assert done.stdout.count(b"\n") == 501
    command = [CLICKMILL, "predict", "--model", str(model), "--output", "-", str(log)]
    with log.open("ab") as stdout:
        failed = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE)
    assert failed.returncode == os.EX_DATAERR
    assert b"--output -: this is the input" in failed.stderr
    assert log.read_bytes() == TEXT


def test_a_closed_pipe_is_no_success(model: Path, tmp_path: Path) -> None:
    (tmp_path / "log.tsv").write_bytes(TEXT * 40)
    line = f"{CLICKMILL} predict --model {model} --input log.tsv --output - | head -1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"], cwd=tmp_path, capture_output=True
    )
    assert done.returncode == 1
    assert done.stdout == b"line,score\n"
    assert b"Traceback" not in done.stderr


def test_home_and_variables(
    model: Path, log: Path, monkeypatch: pytest.MonkeyPatch, scores: pl.DataFrame
) -> None:
    monkeypatch.setenv("HOME", str(log.parent))
    predict(model, Path("~/log.tsv"), Path("~/scores.parquet"))
    assert read(log.with_name("scores.parquet")).equals(scores)
    with pytest.raises(DataError, match=r"no such file \(variables such as \$HOME are not"):
        predict(model, Path("$HOME/log.tsv"), log.with_name("scores.csv"))


SHOP = """
format: FORMAT
columns:
  - {kind: label, names: [bought]}
  - {kind: dense, names: [price], parse: float, transform: {name: clip, low: 0, high: 100}}
  - {kind: categorical, names: [shop], parse: string, policy: vocabulary}
  - {kind: categorical, names: [item], parse: hex32, policy: vocabulary}
  - {kind: ignored, names: [comment]}
"""
FORMATS = {
    "text": "{kind: text, separator: ',', quote: '\"', header: true, null_tokens: ['']}",
    "json_lines": "{kind: json_lines, null_tokens: []}",
    "parquet": "{kind: parquet, null_tokens: []}",
    "orc": "{kind: orc, null_tokens: []}",
    "arrow": "{kind: arrow, null_tokens: []}",
}
ROWS = pl.DataFrame(
    {
        "bought": [k % 2 for k in range(1400)],
        "price": [k / 8 for k in range(1400)],
        "shop": ["=north" if k % 3 else "south" for k in range(1400)],
        "item": [f"{k % 7:08x}" for k in range(1400)],
        "comment": [f"-c{k}" for k in range(1400)],
    }
)
USERS = pl.Series("user", [str(k) if k % 2 else f"u{k}" for k in range(1400)])
Write = Callable[[pl.DataFrame, Path], Path]


def write_csv(rows: pl.DataFrame, folder: Path) -> Path:
    rows.write_csv(folder / "log.csv")
    return folder / "log.csv"


def write_json(rows: pl.DataFrame, folder: Path) -> Path:
    """Write JSON lines in which a user is a number where that is possible."""
    lines = []
    for row in rows.iter_rows(named=True):
        user = row.get("user")
        lines.append(json.dumps(row | ({"user": int(user)} if str(user).isdigit() else {})))
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "log.jsonl"


def write_parquet(rows: pl.DataFrame, folder: Path) -> Path:
    rows.write_parquet(folder / "log.parquet")
    return folder / "log.parquet"


def write_orc(rows: pl.DataFrame, folder: Path) -> Path:
    orc.write_table(rows.to_arrow(), folder / "log.orc")
    return folder / "log.orc"


def write_arrow(rows: pl.DataFrame, folder: Path) -> Path:
    rows.write_ipc(folder / "log.arrow")
    return folder / "log.arrow"


WRITERS: dict[str, Write] = {
    "text": write_csv,
    "json_lines": write_json,
    "parquet": write_parquet,
    "orc": write_orc,
    "arrow": write_arrow,
}


@pytest.fixture(scope="module", params=list(FORMATS))
def shop(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Write]:
    """A bundle for logs of each format that has names, and what writes such a log."""
    root, write = tmp_path_factory.mktemp("shop"), WRITERS[request.param]
    (root / "shop.yaml").write_text(SHOP.replace("FORMAT", FORMATS[request.param]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("features.schema.schema.SCHEMAS", root)
        patch.setattr("features.collect.stage.SCHEMAS", root)
        small: dict[str, Any] = small_params(root).model_dump(by_alias=True)["model"]
        params = make_params(
            data__source=str(write(ROWS, root)), data__schema="shop", model=plain_model(**small)
        )
        make_features(root, params)
        make_bundle(root, params)
    return root / MODEL, write


def test_a_column_of_lists_is_not_copied() -> None:
    for name in ("viewed", "viewed_weights"):
        with pytest.raises(DataError, match=f"--id {name}: it has lists; name a column with one"):
            check_copied([name], schema_of("parquet"), ID)
    check_copied(["item"], schema_of("parquet"), ID)


def test_columns_are_copied_to_the_scores(shop: tuple[Path, Write], tmp_path: Path) -> None:
    """Columns that the model reads, one that it ignores, and one that its schema does not name."""
    model, write = shop
    predict(model, write(ROWS, tmp_path), tmp_path / "plain.parquet")
    log = write(ROWS.with_columns(USERS), tmp_path)
    names = ["user", "comment", "item", "bought", "price", "shop"]
    predict(model, log, tmp_path / "scores.parquet", ids=names)
    found = read(tmp_path / "scores.parquet")
    assert found.columns == ["line", *names, "score"]
    expected = ROWS.with_columns(USERS, pl.col("bought").cast(pl.UInt8)).select(names)
    assert found.select(names).equals(expected)
    assert found.select("line", "score").equals(read(tmp_path / "plain.parquet"))
    predict(model, log, tmp_path / "scores.csv", ids=names)
    in_csv = pl.read_csv(tmp_path / "scores.csv", infer_schema=False)
    assert in_csv["comment"].to_list() == [f"'-c{k}" for k in range(1400)]
    assert {*in_csv["shop"]} == {"'=north", "south"}
    assert in_csv["user"].to_list() == USERS.to_list()
    predict(model, log, tmp_path / "scores.jsonl", ids=names)
    assert read(tmp_path / "scores.jsonl")["comment"].to_list() == ROWS["comment"].to_list()


def test_a_log_without_rows_is_no_error(
    shop: tuple[Path, Write], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, write = shop
    log = write(ROWS.clear(), tmp_path)
    if log.suffix == ".jsonl":
        pytest.skip("JSON lines without rows are an empty file")
    predict(model, log, tmp_path / "scores.parquet")
    assert pl.read_parquet(tmp_path / "scores.parquet").schema == {
        "line": pl.UInt64,
        "score": pl.Float32,
    }
    assert f"{log} has no rows" in capsys.readouterr().out
    predict(model, log, tmp_path / "scores.csv", ids=["comment"])
    assert (tmp_path / "scores.csv").read_text() == "line,comment,score\n"


def test_wrong_names_of_columns_are_refused(shop: tuple[Path, Write], tmp_path: Path) -> None:
    model, write = shop
    log, output = write(ROWS.drop("bought"), tmp_path), tmp_path / "scores.csv"
    for names, message in {
        ("usr",): "usr",
        ("",): "--id '': an empty name; such a column can be ignored only",
        ("*",): "--id '.': a name that means other columns to Polars",
        ("line",): "--id line: the scores have a column of this name already",
        ("shop", "shop"): "--id shop: named twice",
        ("bought",): "--id bought: .* has no label",
    }.items():
        with pytest.raises(DataError, match=message):
            predict(model, log, output, ids=list(names))
    assert not output.exists()


def test_a_log_without_header_can_only_have_columns_of_its_schema(
    model: Path, log: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="--id user: the log has no header, so the column must be"):
        predict(model, log, tmp_path / "scores.csv", ids=["user"])
    predict(model, log, tmp_path / "scores.csv", ids=["label"])
    assert read(tmp_path / "scores.csv")["label"].to_list() == [
        int(line[0]) for line in LINES[:500]
    ]


def test_columns_of_other_types_in_parquet_files(shop: tuple[Path, Write], tmp_path: Path) -> None:
    model, write = shop
    if write is not write_parquet:
        pytest.skip("only Parquet has types")
    numbers = pl.Series("user", range(1400), dtype=pl.UInt64) + 2**63
    first = write(ROWS.with_columns(numbers), tmp_path)
    predict(model, first, tmp_path / "scores.parquet", ids=["user"])
    assert read(tmp_path / "scores.parquet")["user"].equals(numbers)
    second = first.rename(tmp_path / "numbers.parquet")
    first = write(ROWS.with_columns(USERS), tmp_path)
    with pytest.raises(DataError, match=r"--id user: UInt64 in .*numbers.parquet, but String in"):
        predict(model, [first, second], tmp_path / "scores.parquet", ids=["user"])
    lists = ROWS.with_columns(USERS.to_frame().select(pl.concat_list("user")).to_series())
    with pytest.raises(
        DataError, match=r"column user is .*list.*, which cannot be a text, a number"
    ):
        predict(model, write(lists, tmp_path), tmp_path / "scores.csv", ids=["user"])
