"""Parquet, ORC and Arrow logs: the same rows, bounded memory, and messages that name the format."""

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import orc

from common.files import DataError
from features.ingest.readers import columnar_files, columnar_log
from features.ingest.readers.read_log import has_label, max_rows, read_log, write_head
from features.schema.schema import Schema, check_schema
from tests.factories.compressed import COMPRESS
from tests.factories.list_logs import schema_of as list_schema
from tests.factories.list_logs import write_log
from tests.factories.raw_logs import CSV, JSON, PARQUET, READ, ROW, TOKENS, schema_of
from tests.factories.support import ROOT

SCHEMAS = {
    "parquet": PARQUET,
    "orc": schema_of(kind="orc", null_tokens=TOKENS),
    "arrow": schema_of(kind="arrow", null_tokens=TOKENS),
}
NUM_ROWS = 1000
NUM_DAMAGED = 60
TABLE = pa.Table.from_pylist(
    [ROW | {"stock": k, "words": READ[7], "site": f"s{k % 7}"} for k in range(NUM_ROWS)]
)
LIST_ROW: dict[str, Any] = {
    "clicked": 1,
    "price": 2.5,
    "viewed": [5, 7],
    "viewed_weights": [1.0, 0.5],
    "item": 5,
    "tags": ["red"],
    "codes": ["ff"],
    "weight": 0.25,
}
# A column that the schema does not read, and that Polars cannot.
WITH_NESTED = TABLE.append_column(
    "nested", pa.array([[("a", k)] for k in range(NUM_ROWS)], pa.map_(pa.string(), pa.int64()))
)
SITE = TABLE.schema.get_field_index("site")
WITH_DICTIONARY = TABLE.set_column(SITE, "site", TABLE["site"].dictionary_encode())
Write = Callable[[Path], object]


def arrow(table: pa.Table, path: Path, *, stream: bool = False, compression: str | None) -> None:
    options = pa.ipc.IpcWriteOptions(compression=compression)
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as file, new(file, table.schema, options=options) as writer:
        writer.write_table(table, 300)


FRAME = pl.DataFrame(TABLE)
CATEGORIES = FRAME.with_columns(pl.col("site").cast(pl.Categorical))
FILES: dict[str, tuple[str, Write]] = {
    "parquet": ("parquet", lambda path: pq.write_table(WITH_NESTED, path, row_group_size=300)),
    "parquet, tiny groups": ("parquet", lambda path: pq.write_table(TABLE, path, row_group_size=3)),
    "parquet, dictionary": ("parquet", lambda path: pq.write_table(WITH_DICTIONARY, path)),
    "parquet by Polars": ("parquet", lambda path: CATEGORIES.write_parquet(path)),
    "orc": ("orc", lambda path: orc.write_table(WITH_NESTED, path)),
    "orc, zstd": ("orc", lambda path: orc.write_table(WITH_NESTED, path, compression="zstd")),
    "arrow": ("arrow", lambda path: arrow(WITH_NESTED, path, compression=None)),
    "arrow, zstd": ("arrow", lambda path: arrow(WITH_NESTED, path, compression="zstd")),
    "arrow, dictionary": ("arrow", lambda path: arrow(WITH_DICTIONARY, path, compression="lz4")),
    "arrow stream": ("arrow", lambda path: arrow(WITH_NESTED, path, stream=True, compression=None)),
    "arrow stream, lz4": (
        "arrow",
        lambda path: arrow(WITH_DICTIONARY, path, stream=True, compression="lz4"),
    ),
    "arrow by Polars": ("arrow", lambda path: FRAME.write_ipc(path)),
    "arrow by Polars, zstd": ("arrow", lambda path: CATEGORIES.write_ipc(path, compression="zstd")),
    "arrow stream by Polars": ("arrow", lambda path: FRAME.write_ipc_stream(path)),
}
FILE = pytest.mark.parametrize(("kind", "write"), FILES.values(), ids=FILES)


def read(path: Path, schema: Schema) -> pl.DataFrame:
    pieces = list(read_log(path, schema, labelled=True, short_rows="quarantine"))
    assert sum(piece.bad_rows.height for piece in pieces) == 0
    lines = pl.concat([piece.line_numbers for piece in pieces])
    assert lines.to_list() == list(range(1, len(lines) + 1))
    return pl.concat([piece.rows for piece in pieces])


@FILE
def test_each_file_has_the_same_rows(tmp_path: Path, kind: str, write: Write) -> None:
    log, schema, head = tmp_path / "log", SCHEMAS[kind], tmp_path / "head"
    write(log)
    rows = read(log, schema)
    assert rows.height == max_rows(log, schema, "quarantine") == NUM_ROWS
    assert rows["stock"].to_list() == list(range(NUM_ROWS))
    assert rows["site"].to_list() == [f"s{k % 7}" for k in range(NUM_ROWS)]
    assert rows.row(0) == tuple(
        {**dict(zip(rows.columns, READ, strict=True)), "stock": 0, "site": "s0"}.values()
    )
    assert has_label(log, schema)
    write_head(log, schema, 7, head)
    assert read(head, schema).equals(rows[:7])


@pytest.mark.parametrize("kind", SCHEMAS)
def test_bad_rows_and_rows_are_all_rows(tmp_path: Path, kind: str) -> None:
    labels = pa.array([[0, 1, 2, None][k % 4] for k in range(NUM_ROWS)])
    table = TABLE.set_column(TABLE.schema.get_field_index("clicked"), "clicked", labels)
    _write_as(kind, table, tmp_path / "log")
    pieces = list(read_log(tmp_path / "log", SCHEMAS[kind], labelled=True, short_rows="fill"))
    assert sum(piece.rows.height for piece in pieces) == NUM_ROWS // 2
    bad = pl.concat([piece.bad_rows for piece in pieces])
    assert bad["line"].to_list() == [k + 1 for k in range(NUM_ROWS) if k % 4 > 1]


@FILE
def test_a_file_that_is_cut_off_is_refused_at_each_place(
    tmp_path: Path, kind: str, write: Write
) -> None:
    write(tmp_path / "whole")
    data, log = (tmp_path / "whole").read_bytes(), tmp_path / "log"
    for place in range(0, len(data), len(data) // 100 + 1):
        log.write_bytes(data[:place])
        with pytest.raises(DataError, match=r"log is not an? .*; fetch it again or correct"):
            read(log, SCHEMAS[kind])


@FILE
def test_damaged_bytes_give_one_line_or_rows(tmp_path: Path, kind: str, write: Write) -> None:
    """Nothing but a DataError is raised, and no row is lost in silence."""
    write(tmp_path / "whole")
    data, log, draw = (tmp_path / "whole").read_bytes(), tmp_path / "log", random.Random(1)
    num_refused = num_read = 0
    for _ in range(NUM_DAMAGED):
        changed = bytearray(data)
        for _ in range(3):
            changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        log.write_bytes(changed)
        try:
            pieces = list(read_log(log, SCHEMAS[kind], labelled=True, short_rows="fill"))
        except DataError as error:
            num_refused += "\n" not in str(error)
        else:
            num_read += sum(piece.num_lines for piece in pieces) == NUM_ROWS
    assert num_refused > 5
    assert num_refused + num_read == NUM_DAMAGED


@pytest.mark.parametrize("kind", SCHEMAS)
@pytest.mark.parametrize("schema", [*SCHEMAS.values(), CSV, JSON], ids=lambda one: one.format.kind)
def test_a_file_of_another_format_is_named(tmp_path: Path, kind: str, schema: Schema) -> None:
    if schema.format.kind == kind:
        return
    _write_as(kind, TABLE, tmp_path / "log")
    name = {"parquet": "a Parquet", "orc": "an ORC", "arrow": "an Arrow"}[kind]
    with pytest.raises(
        DataError, match=f"log is {name} file; set format.kind: {kind} in its schema"
    ):
        read(tmp_path / "log", schema)


@pytest.mark.parametrize("name", COMPRESS)
def test_a_compressed_columnar_file_is_refused(tmp_path: Path, name: str) -> None:
    pq.write_table(TABLE, tmp_path / "plain")
    (tmp_path / "log").write_bytes(COMPRESS[name]((tmp_path / "plain").read_bytes()))
    with pytest.raises(DataError, match=f"log is compressed by {name}.*; decompress it: "):
        read(tmp_path / "log", PARQUET)


@pytest.mark.parametrize(
    "values",
    [
        pa.array([None], pa.month_day_nano_interval()),
        pa.array([[1]]),
        pa.array([{"a": 1}]),
        pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])]),
        pa.array([1.0], pa.run_end_encoded(pa.int32(), pa.float64())),
    ],
    ids=lambda values: str(values.type),
)
def test_a_type_that_cannot_be_read_is_named(tmp_path: Path, values: pa.Array) -> None:
    """Polars ends the process, or raises what is no Exception, for some of these."""
    table = TABLE.slice(0, 1)
    table = table.set_column(SITE, "site", values)
    arrow(table, tmp_path / "log", compression=None)
    with pytest.raises(DataError, match=r"column site is .*, which cannot be text; convert it"):
        read(tmp_path / "log", SCHEMAS["arrow"])


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    pq.write_table(TABLE.append_column("site", TABLE["site"]), tmp_path / "log")
    with pytest.raises(DataError, match="several columns 'site'; give each a name of its own"):
        read(tmp_path / "log", PARQUET)


def _write_as(kind: str, table: pa.Table, path: Path) -> None:
    if kind == "parquet":
        pq.write_table(table, path)
    elif kind == "orc":
        orc.write_table(table, path)
    else:
        arrow(table, path, compression="zstd")


@pytest.mark.parametrize("kind", SCHEMAS)
def test_long_texts_make_small_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(columnar_log, "PIECE_BYTES", 10_000)
    words = pa.array(["x" * (20_000 if k == 500 else k % 50) for k in range(NUM_ROWS)])
    table = TABLE.set_column(TABLE.schema.get_field_index("words"), "words", words)
    _write_as(kind, table, tmp_path / "log")
    pieces = list(read_log(tmp_path / "log", SCHEMAS[kind], labelled=True, short_rows="fill"))
    sizes = [
        piece.rows.select(pl.col("words", "site").str.len_bytes().sum()).sum_horizontal()[0]
        for piece in pieces
    ]
    assert sorted(sizes)[-1] >= 20_000
    assert sorted(sizes)[-2] <= 10_000
    assert pl.concat([piece.rows for piece in pieces])["words"].to_list() == [
        one or None for one in words.to_pylist()
    ]


def test_a_part_that_is_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columnar_files, "MAX_UNIT_BYTES", 5000)
    monkeypatch.setattr(columnar_files, "BATCH_BYTES", 5000)
    log = tmp_path / "log"
    pq.write_table(TABLE, log, row_group_size=900)
    with pytest.raises(
        DataError,
        match=r"row group 1 has [\d,]+ bytes of column stock, at most 5,000 are read; write the",
    ):
        read(log, PARQUET)
    for stream in (False, True):
        arrow(TABLE, log, stream=stream, compression="zstd")
        with pytest.raises(DataError, match=r"record batch 1 has [\d,]+ bytes, at most 5,000 are"):
            read(log, SCHEMAS["arrow"])
        arrow(TABLE, log, stream=stream, compression=None)  # it is mapped, and takes no memory
        assert read(log, SCHEMAS["arrow"]).height == NUM_ROWS


BOMB_ROWS, TEXT_BYTES = 20_000, 1_000_000
READ_IN_CHILD = """
import resource, sys
from pathlib import Path
import pyarrow.dataset, pyarrow.orc
from common.files import DataError
from features.ingest.readers.read_log import read_log
from tests.factories.raw_logs import TOKENS, schema_of
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
num_rows = 0
schema = schema_of(kind=sys.argv[2], null_tokens=TOKENS)
for piece in read_log(Path(sys.argv[1]), schema, labelled=True, short_rows="fill"):
    num_rows += piece.rows.height
    if num_rows > int(sys.argv[3]):
        break
print(num_rows, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


def peak_mib(log: Path, kind: str, num_rows: int) -> int:
    """Return the memory that reading the first rows takes, in MiB."""
    command = [sys.executable, "-c", READ_IN_CHILD, str(log), kind, str(num_rows)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    rows_read, mib = map(int, run.stdout.split())
    assert rows_read > num_rows
    return mib


def many_rows(words: pa.Array, num_rows: int) -> pa.Table:
    table = TABLE.slice(0, 1).take(pa.array(np.zeros(num_rows, np.int64)))
    return table.set_column(table.schema.get_field_index("words"), "words", words)


@pytest.mark.parametrize("kind", SCHEMAS)
def test_a_dictionary_of_20_gigabytes_of_text_takes_bounded_memory(
    tmp_path: Path, kind: str
) -> None:
    indices = pa.array(np.zeros(BOMB_ROWS, np.int32))
    words = pa.DictionaryArray.from_arrays(indices, pa.array(["x" * TEXT_BYTES]))
    log = tmp_path / "log"
    if kind == "parquet":
        pq.write_table(many_rows(words, BOMB_ROWS), log, compression="zstd", store_schema=False)
    elif kind == "arrow":
        arrow(many_rows(words, BOMB_ROWS), log, compression="zstd")
    else:
        options = {"dictionary_key_size_threshold": 1.0, "stripe_size": 1 << 30}
        with orc.ORCWriter(log, compression="zstd", **options) as writer:
            for _ in range(6):
                writer.write(many_rows(pa.array(["x" * TEXT_BYTES] * 100), 100))
    assert log.stat().st_size < 1 << 22
    assert peak_mib(log, kind, 500) < 1400


ENCODINGS: dict[str, dict[str, Any]] = {
    "dictionary": {},
    "no dictionary": {"use_dictionary": False},
    "a dictionary, then plain": {"dictionary_pagesize_limit": 10, "write_batch_size": 10},
    "one column without": {"use_dictionary": ["site", "words"]},
    **{
        encoding: {"use_dictionary": ["site"], "column_encoding": {"words": encoding}}
        for encoding in ("DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY")
    },
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_texts_are_read_whatever_their_encoding_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    """Row groups of ordinary size, which are read with their dictionaries where they have some."""
    monkeypatch.setattr(columnar_files, "BATCH_BYTES", 50_000)
    words = pa.array([None if k % 5 == 0 else f"word {k % 90}" for k in range(NUM_ROWS)])
    table = TABLE.set_column(TABLE.schema.get_field_index("words"), "words", words)
    options = ENCODINGS[encoding]
    pq.write_table(table, tmp_path / "log", row_group_size=300, store_schema=False, **options)
    rows = read(tmp_path / "log", PARQUET)
    assert rows["words"].to_list() == words.to_pylist()
    assert rows["site"].to_list() == TABLE["site"].to_pylist()
    with columnar_files.open_columnar(tmp_path / "log", "parquet") as file:
        batch = next(file.batches(["clicked", "site", "words"]))
    has_dictionary = encoding in ("dictionary", "a dictionary, then plain", "one column without")
    assert pa.types.is_dictionary(batch["words"].type) == has_dictionary


def test_small_row_groups_are_read_together_up_to_a_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(TABLE, tmp_path / "log", row_group_size=10)
    size = 10 * pq.read_metadata(tmp_path / "log").row_group(0).total_byte_size
    monkeypatch.setattr(columnar_files, "MAX_UNIT_BYTES", 3 * size)
    with columnar_files.open_columnar(tmp_path / "log", "parquet") as file:
        sizes = [batch.num_rows for batch in file.batches(["clicked", "site"])]
    assert sum(sizes) == NUM_ROWS
    assert 20 < max(sizes) < 60


LISTS = check_schema(
    Schema.model_validate(
        {
            "format": {"kind": "parquet", "null_tokens": []},
            "columns": [
                {"kind": "label", "names": ["clicked"]},
                *(
                    {
                        "kind": "categorical",
                        "names": [name],
                        "parse": parse,
                        "policy": "vocabulary",
                        "list": {"pooling": "sum", "max_length": 5},
                    }
                    for name, parse in (("ids", "integer"), ("tags.of user", "string"))
                ),
            ],
        }
    ),
    Path("lists.yaml"),
)


def lists_of_long_texts(num_rows: int, text_bytes: int) -> pa.Table:
    long = pa.array(["x" * text_bytes, "y"])
    indices = pa.array(np.arange(2 * num_rows, dtype=np.int32) % 2)
    offsets = pa.array(np.arange(num_rows + 1, dtype=np.int32) * 2)
    tags = pa.ListArray.from_arrays(offsets, pa.DictionaryArray.from_arrays(indices, long))
    ids = pa.ListArray.from_arrays(offsets, pa.array(np.arange(2 * num_rows)))
    clicked = pa.array(np.arange(num_rows) % 2)
    return pa.table({"clicked": clicked, "ids": ids, "tags.of user": tags})


@pytest.mark.parametrize("compliant", [True, False])
def test_lists_in_row_groups_of_any_size_are_read(tmp_path: Path, *, compliant: bool) -> None:
    """Their values are NAME.list.element in Parquet, or NAME.list.item in older files."""
    table = lists_of_long_texts(40_000, 5)
    pq.write_table(table, tmp_path / "log", use_compliant_nested_type=compliant)
    rows = read(tmp_path / "log", LISTS)
    assert rows["ids"].to_list() == table["ids"].to_pylist()
    assert rows["tags.of user"].to_list() == [["xxxxx", "y"]] * 40_000


def test_a_dictionary_of_texts_in_lists_takes_bounded_memory(tmp_path: Path) -> None:
    table = lists_of_long_texts(BOMB_ROWS, TEXT_BYTES)
    pq.write_table(table, tmp_path / "log", compression="zstd", store_schema=False)
    assert (tmp_path / "log").stat().st_size < 1 << 20
    with columnar_files.open_columnar(tmp_path / "log", "parquet") as file:
        batch = next(file.batches(table.schema.names))
        assert 1 <= batch.num_rows <= columnar_files.BATCH_BYTES // TEXT_BYTES
    pieces = read_log(tmp_path / "log", LISTS, labelled=True, short_rows="fill")
    assert next(pieces).rows["tags.of user"].list.len().to_list() == [2] * batch.num_rows


READ_LISTS_IN_CHILD = READ_IN_CHILD.replace(
    "schema_of(kind=sys.argv[2], null_tokens=TOKENS)", "schema_of(sys.argv[2])"
).replace("tests.factories.raw_logs import TOKENS,", "tests.factories.list_logs import")


def test_lists_of_long_texts_take_bounded_memory(tmp_path: Path) -> None:
    """The lists of the first rows are empty, so their dictionary is not seen there."""
    num_rows, log = 6000, tmp_path / "log"
    write_log(log, [LIST_ROW] * num_rows, "parquet")
    words = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(num_rows - 100, np.int32)), pa.array(["x" * TEXT_BYTES])
    )
    offsets = np.concatenate([np.zeros(100, np.int32), np.arange(num_rows - 99, dtype=np.int32)])
    table = pq.read_table(log)
    table = table.set_column(
        table.schema.get_field_index("tags"), "tags", pa.ListArray.from_arrays(offsets, words)
    )
    pq.write_table(table, log, compression="zstd", store_schema=False)
    assert log.stat().st_size < 1 << 22
    command = [sys.executable, "-c", READ_LISTS_IN_CHILD, str(log), "parquet", "500"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    rows_read, mib = map(int, run.stdout.split())
    assert rows_read > 500
    assert mib < 1400


def test_a_parquet_log_of_many_lists_is_read(tmp_path: Path) -> None:
    """So many rows that their number is bounded by what the dictionaries contain."""
    num_rows = 40_000
    rows = [LIST_ROW | {"item": k, "tags": [f"t{k % 90}"] * (k % 3)} for k in range(num_rows)]
    write_log(tmp_path / "log", rows, "parquet")
    pieces = read_log(tmp_path / "log", list_schema("parquet"), labelled=True, short_rows="fill")
    read = pl.concat([piece.rows for piece in pieces])
    assert read["item"].to_list() == list(range(num_rows))
    assert read["tags"].to_list() == [row["tags"] for row in rows]


@pytest.mark.parametrize("kind", SCHEMAS)
def test_one_group_of_all_rows_is_streamed(tmp_path: Path, kind: str) -> None:
    """Without a buffer, pyarrow would read all pages of the group at once."""
    num_rows = 600_000
    words = pa.array(np.char.mod("%x", np.arange(num_rows) * 7919))
    table = many_rows(words, num_rows)
    if kind == "parquet":
        pq.write_table(
            table,
            tmp_path / "log",
            row_group_size=num_rows,
            compression="none",
            use_dictionary=False,
        )
    elif kind == "orc":
        orc.write_table(table, tmp_path / "log", stripe_size=1 << 30)
    else:
        arrow_file = pa.OSFile(str(tmp_path / "log"), "wb")
        with arrow_file, pa.ipc.new_file(arrow_file, table.schema) as writer:
            writer.write_table(table.combine_chunks())
    assert peak_mib(tmp_path / "log", kind, 50_000) < 100


@pytest.mark.parametrize("kind", SCHEMAS)
def test_columns_that_the_schema_does_not_name_are_not_read(tmp_path: Path, kind: str) -> None:
    """If their bytes are damaged, nobody notices."""
    rest = pa.array([[{"text": "unread" * 50}]] * NUM_ROWS)
    _write_as(kind, TABLE.append_column("rest", rest), tmp_path / "log")
    if kind == "parquet":
        group = pq.read_metadata(tmp_path / "log").row_group(0)
        chunk = group.column(group.num_columns - 1)
        data = bytearray((tmp_path / "log").read_bytes())
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        data[start : start + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
        (tmp_path / "log").write_bytes(data)
    assert read(tmp_path / "log", SCHEMAS[kind]).height == NUM_ROWS
