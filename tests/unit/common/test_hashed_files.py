"""The check of recorded hashes finds missing and changed files."""

import hashlib
from pathlib import Path

from common.files import sha256_file
from common.hashed_files import Mismatch, find_mismatch


def hash_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_files_with_their_recorded_hashes_pass(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "inner" / "b").write_bytes(b"")
    assert find_mismatch(tmp_path, {"a": hash_of(b"one"), "inner/b": hash_of(b"")}) is None
    assert find_mismatch(tmp_path, {}) is None


def test_the_first_changed_file_is_returned(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_bytes(name.encode())
    recorded = {name: sha256_file(tmp_path / name) for name in "abc"}
    (tmp_path / "b").write_bytes(b"B")
    (tmp_path / "c").write_bytes(b"C")
    expected = Mismatch(tmp_path / "b", hash_of(b"b"), hash_of(b"B"))
    assert find_mismatch(tmp_path, recorded) == expected


def test_a_missing_file_and_a_folder_in_its_place_have_no_hash(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("missing", "folder"):
        assert find_mismatch(tmp_path, {name: "00"}) == Mismatch(tmp_path / name, "00", None)
