"""`clickmill sample --output`: which files it writes, replaces and refuses."""

import os
import threading
from pathlib import Path

import pytest

from common.bundle_layout import MANIFEST
from common.files import DataError
from flows.cli.sample import write_named_sample
from tests.factories.support import make_params


def sample(output: Path) -> None:
    write_named_sample(make_params(), output.parent, output, 300, 1, 5)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    sample(tmp_path / "log.tsv")
    return tmp_path / "log.tsv"


def test_a_pipe_gets_the_log_alone(tmp_path: Path, log: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    sample(pipe)
    reader.join()
    assert got == [log.read_bytes()]
    assert pipe.is_fifo()
    assert not (tmp_path / "pipe.truth.parquet").exists()


def test_a_link_is_followed(tmp_path: Path, log: Path) -> None:
    (tmp_path / "link").symlink_to("target.tsv")
    sample(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target.tsv").read_bytes() == log.read_bytes()
    assert (tmp_path / "target.tsv.truth.parquet").exists()


def test_nothing_beside_the_log_is_replaced_through_a_link(tmp_path: Path, log: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    truth = tmp_path / "log.tsv.truth.parquet"
    truth.unlink()
    truth.symlink_to("mine")
    with pytest.raises(
        DataError, match=r"log\.tsv\.truth\.parquet is a link or a device; remove it"
    ):
        sample(log)
    assert truth.is_symlink()
    assert (tmp_path / "mine").read_text() == "mine"


def test_nothing_is_written_into_a_bundle(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text("{}")
    for name in (MANIFEST, "log.tsv"):
        with pytest.raises(DataError, match="inside the model"):
            sample(tmp_path / name)
    assert (tmp_path / MANIFEST).read_text() == "{}"
