"""The command `clickmill served`: a real project, its outputs, and what it refuses."""

from datetime import date
from pathlib import Path

import pytest
from typer.testing import CliRunner

from common.bundle_layout import MODEL
from common.config.loading import ConfigError
from common.files import DataError
from flows.cli import served
from flows.cli.main import app
from tests.factories.html_pages import parsed_html
from tests.factories.served_project import KEY, NAME, NUM_SERVED, WRONG, write_served_project
from tests.factories.support import CRITEO, make_params
from training.served.figures import ServedFigures
from training.served.known_models import KnownModels
from training.served.stage import examine_served


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    write_served_project(root)
    return root


@pytest.fixture
def runner(root: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setattr(served, "load_params", lambda: make_params(data__source="log.tsv"))
    monkeypatch.setattr(served, "ROOT", root)
    return CliRunner()


def test_the_figures_are_printed_and_written(root: Path, runner: CliRunner, tmp_path: Path) -> None:
    outputs = {"--output": tmp_path / "served.html", "--json": tmp_path / "served.json"}
    command = ["served", "--requests", root / "requests", "--log", root / "day.tsv", "--key", KEY]
    for option, path in outputs.items():
        command += [option, path]
    result = runner.invoke(app, list(map(str, command)))
    assert result.exit_code == 0, result.output
    header, row = result.output.splitlines()[-2:]
    assert header.split()[:5] == ["model", "version", "role", "rows", "served"]
    assert row.split()[:1] + row.split()[2:6] == [NAME, "answer", "120", "120", "100.0%"]
    assert f"{WRONG} was served with another value than the log gives in 0.83%" in (result.output)

    figures = ServedFigures.model_validate_json(outputs["--json"].read_bytes())
    assert figures.main
    assert figures.main.num_joined == NUM_SERVED
    assert figures.main.drift
    assert figures.main.metrics
    assert figures.main.metrics.label_rate == pytest.approx(
        sum(line[0] == "1" for line in (root / "day.tsv").read_text().splitlines()) / NUM_SERVED
    )
    assert len(figures.main.columns) == len(CRITEO.features)
    assert {column.skew for column in figures.main.columns} == {0, 1 / NUM_SERVED}

    html = outputs["--output"].read_text()
    page = parsed_html(html)
    assert not page.loads
    assert NAME not in html
    assert {"120 served rows, 120 with labels", WRONG, "0.833%"} <= set(page.texts)


def test_a_bundle_can_be_named(root: Path, tmp_path: Path) -> None:
    known = KnownModels([root / MODEL])
    (figures,) = examine_served(
        make_params(), root, root / "requests", [root / "day.tsv"], KEY, [root / MODEL]
    ).versions
    assert known.state_of(f"{figures.version}-int8").fingerprint == (
        known.state_of(figures.version).fingerprint
    )
    (tmp_path / "empty").mkdir()
    (other,) = examine_served(
        make_params(), root, root / "requests", [root / "day.tsv"], KEY, [tmp_path / "empty"]
    ).versions
    assert other.notes[0].startswith("its bundle is not at hand")
    with pytest.raises(DataError, match=r"--model .*gone: no such bundle"):
        examine_served(make_params(), root, root / "requests", [], KEY, [tmp_path / "gone"])


def test_the_request_log_and_the_key_can_be_those_of_params(root: Path) -> None:
    params = make_params(serve={"request_log": "requests", "log_key": KEY})
    figures = examine_served(params, root, None, [root / "day.tsv"], None)
    assert figures.main
    with pytest.raises(ConfigError, match="no request log: name its folder"):
        examine_served(make_params(), root, None, [], KEY)
    with pytest.raises(ConfigError, match="no key: name the column"):
        examine_served(make_params(), root, root / "requests", [], None)


def test_a_key_that_text_without_a_header_cannot_have(root: Path) -> None:
    with pytest.raises(DataError, match="--key impression: the log has no header"):
        examine_served(make_params(), root, root / "requests", [root / "day.tsv"], "impression")


def test_days_without_rows(root: Path) -> None:
    with pytest.raises(DataError, match=r"no rows of the days that were asked for"):
        examine_served(make_params(), root, root / "requests", [], KEY, until=date(2020, 1, 1))
