"""An artifact gives only files that are as they were written."""

import os
import time
from pathlib import Path

import pytest

from common.artifact import (
    MANIFEST,
    SMALL_FILE_BYTES,
    Artifact,
    ListedFile,
    checked_meanwhile,
    write_manifest,
)
from common.files import DataError

FILES = {"rows.parquet": b"PAR1 rows PAR1", "days/day_0.json": b'{"num_rows": 3}\n', "empty": b""}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of an artifact of the features stage."""
    folder = tmp_path / "artifacts" / "features"
    for name, contents in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(contents)
    write_manifest(folder, {"schema": "criteo"})
    return folder


def flip(path: Path, position: int) -> None:
    """Flip a bit of one byte; the time of the file stays as it was."""
    stat, contents = path.stat(), bytearray(path.read_bytes())
    contents[position] ^= 1
    path.write_bytes(contents)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_listed_files_are_found_and_others_are_not(folder: Path) -> None:
    (folder / "days" / "day_1.json").write_text("{}")
    artifact = Artifact.open(folder)
    assert artifact.about == {"schema": "criteo"}
    assert artifact.names("days") == ["days/day_0.json"]
    assert artifact.paths_in("days") == [folder / "days/day_0.json"]
    assert artifact.read_json("days/day_0.json") == {"num_rows": 3}
    with pytest.raises(DataError, match=r"manifest\.json is damaged: it does not list days/day_1"):
        artifact.path("days/day_1.json")


@pytest.mark.parametrize("name", ["rows.parquet", "days/day_0.json"])
def test_every_flipped_byte_of_a_file_is_noticed(folder: Path, name: str) -> None:
    for position in range(len(FILES[name])):
        flip(folder / name, position)
        artifact = Artifact.open(folder)
        assert not artifact.is_whole(name)
        with pytest.raises(
            DataError, match=rf"{name} is damaged: its CRC-32 .* the stage features"
        ):
            artifact.path(name)
        flip(folder / name, position)
        assert artifact.path(name) == folder / name


def test_every_flipped_byte_of_the_manifest_is_noticed(folder: Path) -> None:
    for position in range((folder / MANIFEST).stat().st_size):
        flip(folder / MANIFEST, position)
        with pytest.raises(DataError, match=r"manifest\.json is damaged"):
            Artifact.open(folder)
        flip(folder / MANIFEST, position)
    Artifact.open(folder)


def test_a_file_that_is_written_to_after_its_check_is_noticed(folder: Path) -> None:
    artifact = Artifact.open(folder)
    path = artifact.path("rows.parquet")
    with artifact.unchanged():
        path.touch()
        os.link(path, folder / "link")  # its bytes are the same
        flip(folder / "days/day_0.json", 3)  # it was not read
    damaged = pytest.raises(DataError, match=r"rows\.parquet is damaged: its CRC-32")
    with damaged, artifact.unchanged():
        flip(path, 3)
        raise ValueError("the rows make no sense")
    path.unlink()
    with pytest.raises(DataError, match=r"rows\.parquet is missing"), artifact.unchanged():
        pass


@pytest.mark.parametrize("num_bytes", [100, SMALL_FILE_BYTES])
def test_a_file_that_is_written_to_while_it_is_read_is_noticed(
    tmp_path: Path, num_bytes: int
) -> None:
    path = tmp_path / "log"
    path.write_bytes(bytes(num_bytes))
    listed = ListedFile.of(path)
    with checked_meanwhile(path, listed):
        path.touch()
    damaged = pytest.raises(DataError, match="log is damaged")
    with damaged, checked_meanwhile(path, listed):
        time.sleep(0.2)  # the thread has read the whole bytes
        flip(path, 7)


def test_what_is_no_file_is_refused_and_not_opened(folder: Path) -> None:
    (folder / "rows.parquet").unlink()
    with pytest.raises(DataError, match=r"rows\.parquet is missing, or is not a file; run"):
        Artifact.open(folder).path("rows.parquet")
    os.mkfifo(folder / "rows.parquet")  # opening it would wait for ever
    with pytest.raises(DataError, match=r"rows\.parquet is missing, or is not a file"):
        Artifact.open(folder).path("rows.parquet")


def test_a_cut_off_file_is_refused_by_its_size(folder: Path) -> None:
    (folder / "rows.parquet").write_bytes(FILES["rows.parquet"][:5])
    with pytest.raises(
        DataError, match=r"rows\.parquet is damaged: 5 bytes found, 14 were written"
    ):
        Artifact.open(folder).paths(["empty", "rows.parquet"])


@pytest.mark.parametrize(
    "contents", ["[]", "{}", '{"files": [], "about": {}, "sha256": ""}', "null", '"x"']
)
def test_a_manifest_of_another_form_is_refused(folder: Path, contents: str) -> None:
    (folder / MANIFEST).write_text(contents)
    with pytest.raises(DataError, match=r"manifest\.json is damaged, or from another version"):
        Artifact.open(folder)


def test_only_what_the_last_run_left_whole_is_reused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Artifact.open_of_last_run(folder.with_name("parquet")) is None
    assert Artifact.open_of_last_run(folder) is not None
    assert capsys.readouterr().out == ""
    flip(folder / MANIFEST, (folder / MANIFEST).read_text().index('"bytes": 14') + len('"bytes": '))
    assert Artifact.open_of_last_run(folder) is None
