"""Files that the user names: `~`, patterns, and the outputs that may be written."""

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from common.bundle_layout import MANIFEST
from common.files import DataError
from common.user_files import expand_home, find_files, user_output, variable_hint


def write(path: Path, *, inputs: tuple[Path, ...] = (), data: bytes = b"new") -> None:
    with user_output(path, "--output", inputs).open() as file:
        file.write(data)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "old.csv"
    path.write_bytes(b"old")
    return path


def test_a_new_file_and_a_regular_file_are_written(tmp_path: Path, old: Path) -> None:
    for path in (old, tmp_path / "new.csv"):
        write(path)
        assert path.read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.csv", "old.csv"]


def test_a_file_stays_as_it_was_if_writing_fails(old: Path) -> None:
    def write_half() -> None:
        with user_output(old, "--output").open() as file:
            file.write(b"half")
            raise EOFError

    with pytest.raises(EOFError):
        write_half()
    assert old.read_bytes() == b"old"


def test_the_target_of_links_is_replaced_and_the_links_stay(tmp_path: Path, old: Path) -> None:
    (tmp_path / "folder").mkdir()
    first, second, new = tmp_path / "first", tmp_path / "folder" / "second", tmp_path / "to_new"
    first.symlink_to(second)
    second.symlink_to("../old.csv")
    new.symlink_to("new.csv")  # which does not exist yet
    write(first)
    write(new)
    assert first.is_symlink()
    assert second.is_symlink()
    assert new.is_symlink()
    assert not old.is_symlink()
    assert old.read_bytes() == (tmp_path / "new.csv").read_bytes() == b"new"


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(DataError, match=r"--output .*loop: Too many levels"):
        user_output(tmp_path / "loop", "--output")


def test_an_input_is_refused_under_each_of_its_names(tmp_path: Path, old: Path) -> None:
    hard, soft = tmp_path / "hard", tmp_path / "soft"
    os.link(old, hard)
    soft.symlink_to(old)
    for path in (old, hard, soft, tmp_path / "." / "old.csv"):
        with pytest.raises(DataError, match=r"this is the input .*old\.csv; name another file"):
            write(path, inputs=(tmp_path / "missing", old))
    for named in (hard, soft):
        with pytest.raises(DataError, match="this is the input"):
            write(old, inputs=(named,))
    assert old.read_bytes() == b"old"


def test_nothing_is_written_into_a_bundle(tmp_path: Path) -> None:
    bundle, cache = tmp_path / "m", tmp_path / "cache"
    (bundle / "state").mkdir(parents=True)
    cache.mkdir()
    (bundle / MANIFEST).write_text("{}")
    (cache / "object").write_text("x")
    (bundle / "history.csv").symlink_to(cache / "object")  # as DVC may link files
    (tmp_path / "link.csv").symlink_to(bundle / "history.csv")
    (tmp_path / "dangling.csv").symlink_to(bundle / "new.csv")
    (tmp_path / "production").symlink_to(bundle)
    for name in (
        f"m/{MANIFEST}",
        "m/new.csv",
        "m/state/new.csv",
        "m/history.csv",
        "link.csv",
        "dangling.csv",
        "production/new.csv",
        f"production/{MANIFEST}",
    ):
        with pytest.raises(DataError, match=r"inside the model .*; name another file"):
            write(tmp_path / name)
    assert (bundle / MANIFEST).read_text() == "{}"
    assert sorted(path.name for path in bundle.iterdir()) == [MANIFEST, "history.csv", "state"]


def test_nothing_is_written_into_the_artifacts_of_a_project(tmp_path: Path) -> None:
    project = tmp_path / "project"
    (project / "artifacts" / "parquet").mkdir(parents=True)
    (project / "artifacts" / "parquet" / "old.parquet").write_text("old")
    (project / "params.yaml").write_text("")
    (tmp_path / "link.csv").symlink_to(project / "artifacts" / "new.csv")
    (tmp_path / "folder").symlink_to(project / "artifacts" / "parquet")
    for name in (
        "project/artifacts/new.csv",
        "project/artifacts/parquet/new.csv",
        "project/artifacts/parquet/old.parquet",
        "project/runs/../artifacts/new.csv",
        "link.csv",
        "folder/new.csv",
    ):
        (project / "runs").mkdir(exist_ok=True)
        with pytest.raises(DataError, match=r"inside .*/project/artifacts, where the stages keep"):
            write(tmp_path / name)
    assert [path.name for path in (project / "artifacts").rglob("*.*")] == ["old.parquet"]
    assert (project / "artifacts" / "parquet" / "old.parquet").read_text() == "old"
    (tmp_path / "artifacts").mkdir()  # of no project
    for path in (tmp_path / "artifacts" / "new.csv", project / "runs" / "artifacts.csv"):
        write(path)
        assert path.exists()


def test_a_folder_and_a_missing_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a file in an existing folder expected, found a folder"):
        user_output(tmp_path, "--output")
    with pytest.raises(DataError, match=r"expected; there is no folder /.*none$"):
        user_output(tmp_path / "none" / "new.csv", "--output")
    with pytest.raises(DataError, match=r"variables such as \$HOME are not expanded"):
        user_output(tmp_path / "$HOME" / "new.csv", "--output")


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        got: list[bytes] = []
        reader = threading.Thread(target=lambda got=got: got.append(pipe.read_bytes()))
        reader.start()
        write(path, data=b"x" * 200_000)
        reader.join()
        assert got == [b"x" * 200_000]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_device_is_written_to_and_stays_a_device(tmp_path: Path) -> None:
    node = tmp_path / "node"
    try:
        os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(1, 3))  # as /dev/null
        node.open("wb").close()
    except PermissionError:
        pytest.skip("only root can make a device")
    write(node)
    assert stat.S_ISCHR(node.stat().st_mode)


def test_a_file_that_the_shell_appends_to_is_not_replaced(tmp_path: Path, old: Path) -> None:
    """`>> old.csv` with /dev/stdout, /dev/fd/1 and `-`."""
    program = (
        "from pathlib import Path; import sys; from common.user_files import user_output\n"
        "with user_output(Path(sys.argv[1]), '--output').open() as file: file.write(b'+')"
    )
    number = old.stat().st_ino
    for name in ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"):
        with old.open("ab") as stdout:
            subprocess.run([sys.executable, "-c", program, name], stdout=stdout, check=True)
    assert old.read_bytes() == b"old++++"
    assert old.stat().st_ino == number


def test_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)
    assert expand_home(Path("~/x.csv")) == Path("/home/me/x.csv")
    assert expand_home(Path("~")) == Path("/home/me")
    assert expand_home(Path("a/~/x.csv")) == Path("a/~/x.csv")
    assert expand_home(Path("~nobody-of-this-name/x")) == Path("~nobody-of-this-name/x")
    (tmp_path / "~").mkdir()
    assert expand_home(Path("~/x.csv")) == Path("~/x.csv")


def test_variables_are_named_in_the_error() -> None:
    assert variable_hint(Path("a/${DATA}/x")) == (
        " (variables such as ${DATA} are not expanded; write the path)"
    )
    assert variable_hint(Path("a/cost$/x")) == ""


@pytest.mark.parametrize("folder", ["[x]", "a*", "w?", "{a,b}", "deep/[!x]", "**"])
def test_a_folder_that_exists_is_no_pattern(tmp_path: Path, folder: str) -> None:
    decoys = ["x", "ab", "wz", "a", "deep/y"]
    for name in [folder, *decoys]:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "day_1.tsv").write_text("x")
    assert find_files(tmp_path / folder / "day_*.tsv").paths == [tmp_path / folder / "day_1.tsv"]
    assert find_files(tmp_path / folder).paths == [tmp_path / folder / "day_1.tsv"]


def test_a_file_that_exists_is_no_pattern(tmp_path: Path) -> None:
    for name in ("day_1.tsv", "day_[1].tsv"):
        (tmp_path / name).write_text("x")
    assert find_files(tmp_path / "day_[1].tsv").paths == [tmp_path / "day_[1].tsv"]
    (tmp_path / "day_[1].tsv").unlink()
    assert find_files(tmp_path / "day_[1].tsv").paths == [tmp_path / "day_1.tsv"]
    assert find_files(tmp_path / "day_[2].tsv").paths == []
    assert find_files(tmp_path / "day\0").paths == []
