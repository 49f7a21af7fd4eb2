"""A night, a day of served traffic, and the next night, which joins what was served with labels."""

from pathlib import Path

import numpy as np
import pytest

from common.config.params import Gate
from common.progress import Progress
from features.sample.generate import write_sample
from flows.nightly.history import HISTORY
from flows.nightly.record import PRODUCTION, NightlyRun
from flows.nightly.repository import NightlyRepository
from tests.conftest import Project, clone
from tests.factories.html_pages import parsed_html
from tests.factories.running_server import running_server
from tests.factories.support import CRITEO

pytestmark = pytest.mark.slow

NUM_DAYS, ROWS = 4, 2000
TIMEOUT_S = 900.0  # on a busy machine
KEY = "impression"
OURS = ("-c", "user.name=test", "-c", "user.email=test@localhost")
TRAIN = {"epochs": 1, "reset_embeddings_each_epoch": False, "validations": 2}
ANY_DAY = {"warn": None, "block_promotion": None, "stop": None}
PER_REQUEST = 20


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """Return the lines of each generated day; an impression comes after the columns of Criteo."""
    path = tmp_path_factory.mktemp("days") / "log.tsv"
    with Progress("sample", NUM_DAYS * ROWS, None) as progress:
        write_sample(path, NUM_DAYS * ROWS, NUM_DAYS, 1, CRITEO, progress)
    lines = [f"{line}\ti{k}" for k, line in enumerate(path.read_text().splitlines())]
    return [lines[k * ROWS : (k + 1) * ROWS] for k in range(NUM_DAYS)]


@pytest.fixture(scope="module")
def project(
    repository: Path,
    tmp_path_factory: pytest.TempPathFactory,
    environment: dict[str, str],
    days: list[list[str]],
) -> Project:
    """A checkout whose schema has impressions, and the logs of all days but the last."""
    root = tmp_path_factory.mktemp("nights") / "project"
    project = clone(repository, root, environment)
    schema = (root / "features/schema/criteo.yaml").read_text()
    columns, sample = schema.split("\n# What `clickmill sample` imitates")
    assert sample
    (root / "features/schema/impressions.yaml").write_text(
        f"{columns}  - {{kind: ignored, names: [{KEY}]}}\n"
    )
    for name, value in (("source", "../logs"), ("schema", "impressions")):
        project.set_param("data", name, value)
    project.set_param("features", "fit_days", 2)
    project.set_param("export", "runtime", "onnx")
    for name, value in (("request_log", "../requests"), ("log_key", KEY)):
        project.set_param("serve", name, value)
    for name in Gate.model_fields:
        project.set_param("gate", name, ANY_DAY)
    project.set_param("promote", "max_ece", 0.5)
    project.set_param("promote", "calibration", {"low": 0.2, "high": 5})
    for name in ("bottom_mlp", "top_mlp"):
        project.set_param("model", name, [16])
    for name, train in TRAIN.items():
        project.set_param("train", name, train)
    project.run("git", "add", "-A")
    project.run("git", *OURS, "commit", "-qm", "our log")
    (root.parent / "logs").mkdir()
    for k in range(NUM_DAYS - 1):
        write_day(project, days, k)
    return project


def write_day(project: Project, days: list[list[str]], day: int) -> None:
    path = project.root.parent / "logs" / f"day_{day}.tsv"
    path.write_text("".join(f"{line}\n" for line in days[day]))


def run_nightly(project: Project) -> NightlyRun:
    output = project.run("clickmill", "nightly", "run", timeout_s=TIMEOUT_S)
    last = NightlyRepository(project.root).runs()[-1]
    assert last.headline in output, output
    return last


def test_the_next_night_knows_how_the_served_scores_were(
    project: Project, days: list[list[str]], tmp_path: Path
) -> None:
    first = run_nightly(project)
    assert first.outcome == "promoted", first.reasons
    assert first.served is None
    (warning,) = [line for line in first.warnings if line.startswith("served")]
    assert "no request log (No such file or directory)" in warning

    requests = project.root.parent / "requests"
    options = ("--log-requests", str(requests), "--log-fraction", "1", "--log-key", KEY)
    model = f"production={project.root / PRODUCTION}"
    scores: list[float] = []
    unlabelled = [line.partition("\t")[2] for line in days[-1]]
    with running_server(tmp_path, "--model", model, *options) as server:
        for k in range(0, ROWS, PER_REQUEST):
            answer = server.score(unlabelled[k : k + PER_REQUEST])
            assert answer["version"] == first.version
            scores += answer["scores"]
        assert server.stop() == 0

    write_day(project, days, NUM_DAYS - 1)
    second = run_nightly(project)
    figures = second.served_figures
    assert figures, second.warnings
    (one,) = figures.versions
    assert (one.model, one.version, one.role) == ("production", first.version, "answer")
    assert (one.num_rows, one.num_compared, one.num_joined) == (ROWS, ROWS, ROWS)
    assert one.skew is None  # the server makes the features that the log gives
    assert one.notes == []
    assert one.drift
    clicks = sum(line.startswith("1\t") for line in days[-1])
    assert one.metrics
    assert one.metrics.label_rate == pytest.approx(clicks / ROWS)
    ratio = np.float32(scores).sum(dtype=np.float64) / clicks
    assert one.metrics.calibration_ratio == pytest.approx(ratio, rel=1e-6)
    assert figures.num_log_rows == ROWS  # the new day alone is read
    assert second.stage_seconds["served"] > 0

    html = (project.root / HISTORY).read_text()
    assert f"of run 2: production {first.version}: {ROWS:,} rows, 100.0% joined" in (
        " ".join(parsed_html(html).texts)
    )
    lines = project.run("clickmill", "nightly", "explain", "v2").splitlines()
    assert any(line.startswith("served      production") for line in lines)
