"""The hashes of the code that makes an artifact follow the files as they are now."""

from pathlib import Path

import pytest

from common import code_hash
from common.code_hash import code_hashes
from common.files import sha256_file


def test_imports_are_followed_and_changes_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_hash, "REPOSITORY", tmp_path)
    (tmp_path / "features").mkdir()
    for name in ("one", "two", "three"):
        (tmp_path / "features" / f"{name}.py").write_text("import os\n")
    one = tmp_path / "features" / "one.py"
    one.write_text("def f():\n    from features import two\n")
    found = code_hashes("features.one")
    assert set(found) == {"features.one", "features.two"}
    assert found["features.one"] == sha256_file(one)
    one.write_text("import features.three\n")
    assert set(code_hashes("features.one")) == {"features.one", "features.three"}
    (tmp_path / "features" / "two.cpp").write_text("int x;")
    one.write_text("def f():\n    from features import two\n")
    assert set(code_hashes("features.one")) == {"features.one", "features.two", "features.two.cpp"}
    assert code_hashes("features.one", without=("features.two",)).keys() == {"features.one"}
