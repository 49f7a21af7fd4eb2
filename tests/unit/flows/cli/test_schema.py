"""`clickmill schema`: what infer writes and refuses, and what check reports."""

import re
import shutil
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner, Result

from common.config.params import load_params
from features.schema.schema import load_schema
from flows.cli.schema import app
from tests.factories.shop_logs import shop_log
from tests.factories.support import ROOT


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params.yaml, a log, and an empty folder of schemas."""
    shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml")
    (tmp_path / "schemas").mkdir()
    (tmp_path / "logs").mkdir()
    log = shop_log(2000, 4)
    for day in range(4):
        of_day = log.filter(pl.col("seen_at").dt.day() == day + 1)
        of_day.write_csv(tmp_path / "logs" / f"day_{day}.csv", datetime_format="%Y-%m-%d %H:%M:%S")
    monkeypatch.setattr("features.schema.schema.SCHEMAS", tmp_path / "schemas")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def test_use_changes_two_lines_of_params(project: Path) -> None:
    before = (project / "params.yaml").read_text()
    result = run("infer", "logs", "--name", "shop", "--use")
    assert result.exit_code == 0, result.output
    assert "Next: clickmill schema check" in result.output
    after = (project / "params.yaml").read_text()
    changed = [
        (old, new)
        for old, new in zip(before.split("\n"), after.split("\n"), strict=True)
        if old != new
    ]
    assert changed == [
        (old, re.sub(": (sample|criteo)", f": {value}", old))
        for (old, _), value in zip(changed, ["logs", "shop"], strict=True)
    ]
    assert load_params().data.source == "logs"
    assert load_schema("shop").label == "clicked"


def test_without_use_params_stay_as_they_are(project: Path) -> None:
    before = (project / "params.yaml").read_bytes()
    assert run("infer", "logs", "--name", "shop").exit_code == 0
    assert (project / "params.yaml").read_bytes() == before


def test_files_that_are_not_taken_are_named(project: Path) -> None:
    (project / "logs" / "day_4.pq").write_bytes(b"PAR1")
    (project / "logs" / "_SUCCESS").touch()
    line = (
        "not taken: name begins with _ or .: 1 (_SUCCESS); ending is not that of a log: 1"
        " (day_4.pq)"
    )
    assert line in run("infer", "logs", "--name", "shop", "--use").output
    assert line in run("check").output


def test_the_days_of_folders_are_named(project: Path) -> None:
    for hour in range(2):
        for day in range(3):
            folder = project / "hours" / f"dt=2026-03-0{day + 1}" / f"hour={hour}"
            folder.mkdir(parents=True)
            shop_log(200, 1, 2 * day + hour).drop("seen_at").write_csv(folder / "part-0.csv")
    assert run("infer", "hours", "--name", "shop", "--use").exit_code == 0
    schema = project / "schemas" / "shop.yaml"
    schema.write_text(
        "".join(
            line
            for line in schema.read_text().splitlines(keepends=True)
            if not line.startswith("days:")
        )
    )
    assert "3 days by the folders, 2026-03-01 to 2026-03-03" in run("check").output


def test_a_schema_is_replaced_by_force_only(project: Path) -> None:
    target = project / "schemas" / "shop.yaml"
    target.write_text("mine")
    result = run("infer", "logs", "--name", "shop")
    assert "exists; give another name, or --force" in str(result.exception)
    assert target.read_text() == "mine"
    assert run("infer", "logs", "--name", "shop", "--force").exit_code == 0
    first = target.read_bytes()
    assert run("infer", "logs", "--name", "shop", "--force").exit_code == 0
    assert target.read_bytes() == first
    assert [path.name for path in target.parent.iterdir()] == ["shop.yaml"]


@pytest.mark.parametrize("name", ["../shop", "a b", ""])
def test_a_name_that_is_no_file_name_is_refused(project: Path, name: str) -> None:
    assert "--name" in str(run("infer", "logs", "--name", name).exception)
    assert list((project / "schemas").iterdir()) == []


def test_the_file_says_what_was_seen_and_what_is_unsure(project: Path) -> None:
    run("infer", "logs", "--name", "shop")
    text = (project / "schemas" / "shop.yaml").read_text()
    assert re.search(r"names: \[price\].*# [\d,]+ values, \d+\.\d % missing, ", text)
    assert re.search(r"# unsure: the limits are those of the sample\n.*names: \[change\]", text)


def test_check_reports_columns_days_and_bad_rows(project: Path) -> None:
    run("infer", "logs", "--name", "shop", "--use")
    (project / "logs" / "day_2.csv").open("a").write(
        "e1,1,2026-03-03 23:59:59,cheap,1,north,1,1,web\nx\n"
    )
    before = sorted(path for path in project.rglob("*") if path.is_file())
    result = run("check")
    output = result.output
    assert result.exit_code == 0, output
    assert re.search(r"^day_2\.csv +502 +2$", output, re.MULTILINE)
    assert "2,002 rows in 4 files, 2 bad rows (0.10%), label rate" in output
    assert "4 days, 2026-03-01 to 2026-03-04" in output
    assert "1 x price: a value is not a finite number" in output
    assert "1 x 1 columns, 9 expected; first: day_2.csv line 503" in output
    assert re.search(r"^clicked +label +0\.0% +2 +0 +1$", output, re.MULTILINE)
    assert re.search(r"^shop +categorical +0\.0% +4$", output, re.MULTILINE)
    assert sorted(path for path in project.rglob("*") if path.is_file()) == before


def test_check_reports_on_lists(project: Path) -> None:
    lines = "".join(
        f"{i % 2},{i},a{i % 3}|b{i % 7}{'|c' * (i % 10 == 0) * 5}\n" for i in range(500)
    )
    (project / "log.csv").write_text("clicked,price,tags\n" + lines + "0,1,\n")
    result = run("infer", "log.csv", "--name", "tags")
    assert re.search(
        r"^tags +categorical string list +lists of up to 7, 11 values", result.output, re.M
    )
    schema = project / "schemas" / "tags.yaml"
    schema.write_text(schema.read_text().replace("max_length: 7", "max_length: 6"))
    output = run("check", "log.csv", "--schema", "tags").output
    assert re.search(r"^tags +categorical +0\.2% +11$", output, re.MULTILINE)
    assert re.search(r"^lists +shortest +mean length +longest +max_length +rows cut$", output, re.M)
    assert re.search(r"^tags +2 +2\.5 +7 +6 +50$", output, re.MULTILINE)
    assert "tags: 10% of the lists have over 6 values and are cut; is max_length too" in output


def test_check_fails_above_the_limit_of_bad_rows(project: Path) -> None:
    run("infer", "logs", "--name", "shop")
    (project / "logs" / "day_2.csv").open("a").write("x\n" * 30)
    result = run("check", "logs", "--schema", "shop")
    assert result.exit_code == 1
    assert "Too many bad rows: 1.48%, at most 1.00% are allowed" in result.output


def test_check_warns_of_columns_that_say_nothing(project: Path) -> None:
    run("infer", "logs", "--name", "shop")
    target = project / "schemas" / "shop.yaml"
    text = target.read_text()
    for name in ("event", "source"):
        text = text.replace(
            f"{{kind: ignored, names: [{name}]}}",
            f"{{kind: categorical, names: [{name}], parse: string, policy: vocabulary}}",
        )
    target.write_text(text)
    output = run("check", "logs", "--schema", "shop").output
    assert "source: one value; declare it as ignored" in output
    assert "event: nearly all values are distinct" in output
