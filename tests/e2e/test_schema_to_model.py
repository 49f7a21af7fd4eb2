"""Three commands lead from unknown logs to a trained model, as a page of the guide shows."""

import re
import sys

import pytest

from common.bundle_layout import MODEL
from common.files import read_json
from common.layout import EVALUATION
from tests.conftest import Project
from tests.factories.support import ROOT

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs" / "guides" / "from-logs-to-a-model.md").read_text(encoding="utf-8")


def test_the_commands_of_the_guide_lead_from_logs_to_a_model(project: Project) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    first, check, train, *others = re.findall(r"^\$ (clickmill .*)$", PAGE, re.MULTILINE)
    assert others == [first, check, train]
    project.run(sys.executable, "-c", code)
    project.set_param("train", "epochs", 2)
    output = project.run(*first.split())
    assert "Next: clickmill schema check" in output
    (shown,) = re.findall(r"^(Format: .*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert shown in output
    output = project.run(*check.split())
    assert "18,000 rows in 6 files, 0 bad rows" in output
    assert "Next: clickmill run" in output
    project.run(*train.split())
    assert (project.root / MODEL / "bundle.json").is_file()
    assert read_json(project.root / EVALUATION / "metrics.json")["test"]["auc"] > 0.6
