"""Each test that docs/faults.md names exists."""

import re
from pathlib import Path

import pytest

from tests.factories.support import ROOT

PAGE = ROOT / "docs" / "faults.md"
NAMED = sorted(
    set(re.findall(r"\| `([\w/]+\.py)(?:::(\w+))?` \|$", PAGE.read_text(), re.MULTILINE))
)


def test_every_row_names_a_test() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    rows = [line for line in rows if line != "| fault | promise | test |"]
    assert len(rows) > 50
    assert [row for row in rows if not re.search(r"\| `[\w/]+\.py(::\w+)?` \|$", row)] == []


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_the_test_exists(file: str, name: str) -> None:
    path = Path(ROOT / "tests" / file)
    assert path.is_file()
    assert not name or f"def {name}(" in path.read_text()
