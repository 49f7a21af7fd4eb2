"""Damaged footers of Parquet, ORC and Arrow logs: one line, or rows; never a dead process.

Some damage ends the process from within pyarrow or Polars, where no exception can be caught, so the
files are read in a child.
"""

import random
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.factories.support import ROOT
from tests.unit.features.ingest.readers.test_columnar_files import FILES, TABLE

NUM_DAMAGED = 12
SMALL_BATCHES = 500  # with it, the footer of a Parquet file is searched for long texts
READ_IN_CHILD = """
import sys
from pathlib import Path
from common.files import DataError
from features.infer.infer import infer_schema
from features.infer.log_files import find_log_files
from features.ingest.readers import columnar_files
from features.ingest.readers.read_log import has_label, max_rows, read_log, write_head
from flows.nightly.provenance import read_scores_origin
from tests.factories.raw_logs import TOKENS, schema_of
from tests.factories.support import make_params
kind, folder, limit = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
schema = schema_of(kind=kind, null_tokens=TOKENS)
if limit:
    columnar_files.BATCH_BYTES = columnar_files.MAX_UNIT_BYTES = limit
def read(log):
    list(read_log(log, schema, labelled=True, short_rows="fill"))
def infer(log):
    infer_schema(find_log_files(make_params(data__source=str(log)).data, log.parent), "clicked")
READERS = [
    read,
    infer,
    read_scores_origin,
    lambda log: has_label(log, schema),
    lambda log: max_rows(log, schema, "fill"),
    lambda log: write_head(log, schema, 7, log.with_suffix(".head")),
]
for log in sorted(folder.iterdir()):
    for reader in READERS:
        print(log.name, reader.__name__, flush=True)
        try:
            reader(log)
        except DataError as error:
            assert "\\n" not in str(error), error
"""


def damage(data: bytes, seed: int) -> bytes:
    """Flip bits, change or cut out bytes in the last part of a file, where the footer is."""
    draw, changed = random.Random(seed), bytearray(data)
    footer = min(len(data), draw.choice([200, 1000, 4000]))
    for _ in range(draw.randint(1, 3)):
        place = len(changed) - 1 - draw.randrange(footer)
        how = draw.randrange(3)
        if how == 0:
            changed[place] ^= 1 << draw.randrange(8)
        elif how == 1:
            changed[place] = draw.choice([0, 127, 128, 255])
        else:
            cut = draw.randint(1, 8)
            changed[place : place + cut] = bytes(cut) if draw.random() < 0.5 else b""
    return bytes(changed)


def check_child(kind: str, folder: Path, limit: int) -> None:
    command = [sys.executable, "-c", READ_IN_CHILD, kind, str(folder), str(limit)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    last = run.stdout.splitlines()[-1:]
    assert run.returncode == 0, f"{run.returncode} at {last}: {run.stderr[-2000:]}"


@pytest.mark.parametrize(
    ("kind", "limit"), [("parquet", 0), ("parquet", SMALL_BATCHES), ("orc", 0), ("arrow", 0)]
)
def test_a_damaged_footer_gives_one_line_or_rows(tmp_path: Path, kind: str, limit: int) -> None:
    """One child reads the damaged logs of all writers, since most of its time is its start."""
    folder = tmp_path / "logs"
    folder.mkdir()
    writers = {name: write for name, (of_kind, write) in FILES.items() if of_kind == kind}
    assert writers
    for name, write in writers.items():
        write(tmp_path / "whole")
        data = (tmp_path / "whole").read_bytes()
        for seed in range(NUM_DAMAGED):
            (folder / f"{name}, {seed}").write_bytes(damage(data, seed))
    check_child(kind, folder, limit)


def test_no_byte_of_the_schema_ends_the_process(tmp_path: Path) -> None:
    """The process ends if pyarrow is asked for the size of a column of a damaged type."""
    pq.write_table(TABLE.slice(0, 50), tmp_path / "whole", store_schema=False)
    data, folder = (tmp_path / "whole").read_bytes(), tmp_path / "logs"
    folder.mkdir()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    for k in range(160):
        changed = bytearray(data)
        changed[footer + k] = 0
        (folder / f"log_{k:03d}").write_bytes(changed)
    check_child("parquet", folder, SMALL_BATCHES)
