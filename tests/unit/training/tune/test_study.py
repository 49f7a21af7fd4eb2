"""A study is the same for any number of workers, after any kill, and with failing trials."""

import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.artifact import DamageError
from common.config.loading import ConfigError
from common.config.params import Params
from common.files import DataError
from common.layout import FEATURES
from features.collect.stage import collect
from features.dataset.stage import build_features
from features.encode.feature_state import FeatureState
from features.ingest.stage import ingest
from tests.factories.features import training_params
from tests.factories.studies import InlinePool, linked_study, make_study, outcome
from tests.factories.support import make_params
from training.stage import train
from training.tune import trial_features
from training.tune.confirm import confirm
from training.tune.outcome import Outcome
from training.tune.stopping import TOLERANCE
from training.tune.study import Study
from training.tune.trial import Task, run_trial

RULES: list[dict[str, Any]] = [
    {"name": "none"},
    {"name": "median", "startup": 2, "warmup": 0.1},
    {"name": "successive_halving", "eta": 2, "min_share": 0.1},
    {"name": "hyperband", "eta": 3, "min_share": 0.1},
]
SAMPLERS: list[dict[str, Any]] = [
    {"name": "random"},
    {"name": "tpe", "startup": 3},
    {"name": "nsga2", "population": 3},
]


def arithmetic(task: Task) -> Outcome:
    """Return an outcome that follows from the task as a training's would, in no time."""
    values = [task.params.model.embedding_dim, task.params.train.dense_optimizer.lr]
    digest = hashlib.sha256(json.dumps([values, task.params.train.seed]).encode()).digest()
    if digest[0] < 20:
        return Outcome(result=None, error="Diverged: train loss nan at step 3")
    losses = [0.7 - 0.02 * k + digest[1] / 1000 for k in range(10)]
    for k, loss in enumerate(losses):
        share = (k + 1) / 10
        reached = [one for one in task.limits if one.share <= share + TOLERANCE]
        if share < 1 and any(loss > one.logloss for one in reached):
            return outcome(losses[: k + 1], macs=values[0], is_stopped=True)
    return outcome(losses, macs=values[0])


def run(study: Study, pool: InlinePool) -> bytes:
    """Run a study and return the bytes of its journals."""
    with study.opened(), pool:
        confirm(study, study.search(pool), pool)
    return study.trials.path.read_bytes() + study.confirmations.path.read_bytes()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["name"]))
@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: str(sampler["name"]))
def test_any_number_of_workers_gives_the_same_bytes(
    rule: dict[str, Any], sampler: dict[str, Any], tmp_path: Path
) -> None:
    study = make_study(tmp_path, trials=14, stop=rule, sampler=sampler)
    found = set()
    for num_workers in (1, 2, 4):
        found.add(run(study, InlinePool(num_workers, arithmetic, seed=num_workers)))
        shutil.rmtree(study.folder)
    assert len(found) == 1


class Killed(Exception):  # noqa: N818
    """The coordinator is killed."""


def killed_at(count: int, run_task: Callable[[Task], Outcome]) -> Callable[[Task], Outcome]:
    """Return a function that runs tasks until it has run some."""
    runs = iter(range(count + 1))

    def run_or_die(task: Task) -> Outcome:
        if next(runs) == count:
            raise Killed
        return run_task(task)

    return run_or_die


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """The root of a study, and the bytes of its journals when it is left alone."""
    root = tmp_path_factory.mktemp("study")
    study = make_study(root)
    found = run(study, InlinePool(1, arithmetic))
    shutil.rmtree(study.folder)
    return root, found


@given(
    kills=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 4), st.integers(0, 80)), max_size=4)
)
@settings(max_examples=15, deadline=None)
def test_kills_and_half_lines_change_nothing(
    expected: tuple[Path, bytes], kills: list[tuple[int, int, int]]
) -> None:
    root, whole = expected
    study = make_study(root)
    for count, num_workers, cut in kills:
        pool = InlinePool(num_workers, killed_at(count, arithmetic), seed=count)
        with suppress(Killed):
            run(study, pool)
        for path in (study.trials.path, study.confirmations.path):
            if path.exists():
                with path.open("ab") as file:
                    file.write(b'{"number": 3, "values": {"model.embedding_dim": 4, "x": 1}'[:cut])
    assert run(study, InlinePool(3, arithmetic, seed=7)) == whole
    shutil.rmtree(study.folder)


def test_real_trainings_give_the_same_bytes_too(tmp_path: Path) -> None:
    study = make_study(tmp_path, trials=5, confirm={"best": 1, "seeds": 2})
    found = run(study, InlinePool(1))
    shutil.rmtree(study.folder)
    assert run(study, InlinePool(4, seed=3)) == found


def test_more_trials_go_on_with_the_same_study(tmp_path: Path) -> None:
    few = make_study(tmp_path, trials=4)
    run(few, InlinePool(2, arithmetic))
    more = make_study(tmp_path, trials=9, parallel=1)
    assert more.key == few.key
    pool = InlinePool(2, killed_at(5 + 6, arithmetic))
    with more.opened(), pool:
        assert len(more.search(pool)) == 9


def test_fewer_trials_keep_those_that_were_run_before(tmp_path: Path) -> None:
    many = make_study(tmp_path, trials=9)
    run(many, InlinePool(2, arithmetic))
    whole = many.trials.path.read_bytes()
    fewer = make_study(tmp_path, trials=4)
    with fewer.opened(), InlinePool(2, arithmetic) as pool:
        assert [trial.number for trial in fewer.search(pool)] == [0, 1, 2, 3]
    assert fewer.trials.path.read_bytes() == whole


def test_a_trial_knows_none_of_the_last_ones_of_the_window(tmp_path: Path) -> None:
    """With a window of 4, trials 0 to 3 are chosen before any outcome is there."""
    values = []
    for worst in (0.1, 0.9):
        study = make_study(tmp_path, sampler={"name": "tpe", "startup": 1})

        def constant(task: Task, worst: float = worst) -> Outcome:
            return outcome([worst * task.params.train.dense_optimizer.lr])

        with study.opened(), InlinePool(2, constant) as pool:
            trials = study.search(pool)
        values.append([trial.values for trial in trials])
        shutil.rmtree(study.folder)
    assert values[0][:4] == values[1][:4]


def test_failed_trials_are_lines_with_their_reason(tmp_path: Path) -> None:
    study = make_study(tmp_path, trials=30)
    with study.opened(), InlinePool(3, arithmetic) as pool:
        trials = study.search(pool)
    failed = [trial for trial in trials if trial.outcome.error]
    assert failed
    assert all(trial.outcome.error == "Diverged: train loss nan at step 3" for trial in failed)
    assert [trial.number for trial in trials] == list(range(30))


def test_values_that_do_not_go_together_are_a_failed_trial(tmp_path: Path) -> None:
    space = {
        "model.embedding_dim": {"choice": [3, 4]},
        "model.tables": {"choice": [{"name": "mixed_dim", "alpha": 0.3, "threshold": 2}]},
    }
    study = make_study(tmp_path, trials=6, space=space, sampler={"name": "random"}, confirm=None)
    with study.opened(), InlinePool(2, lambda task: outcome([0.5])) as pool:
        trials = study.search(pool)
    for trial in trials:
        is_wrong = trial.values["model.embedding_dim"] == 3
        assert ("power of two" in (trial.outcome.error or "")) == is_wrong
    assert len({trial.values["model.embedding_dim"] for trial in trials}) == 2


def test_the_study_of_other_features_parameters_or_rules_is_another_one(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    assert make_study(tmp_path, trials=99, parallel=1, confirm=None).key == study.key
    others = [
        make_study(tmp_path, seed=2),
        make_study(tmp_path, window=3),
        make_study(tmp_path, threads=2),
        make_study(tmp_path, stop={"name": "none"}),
        make_study(tmp_path, set={"train.epochs": 1}),
        make_study(tmp_path, training_params(validations=5, epochs=2)),
    ]
    shutil.rmtree(tmp_path / "artifacts")
    others.append(make_study(tmp_path, training_params(validations=4, epochs=2)))
    keys = {study.key, *(other.key for other in others[:-1])}
    assert len(keys) == len(others)
    assert others[-1].key == study.key, "the same features again"


def test_two_processes_do_not_run_the_same_study(tmp_path: Path) -> None:
    with (
        make_study(tmp_path).opened(),
        pytest.raises(ConfigError, match="another clickmill tune runs the study"),
        make_study(tmp_path).opened(),
    ):
        pass


def test_features_that_change_while_the_study_runs_do_not_change_it(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    with study.opened():
        task = study.task("trial", {})
        shutil.rmtree(tmp_path / "artifacts/features")
        assert study.task("trial", {}) == task
    assert (task.root / "artifacts/features/manifest.json").exists()


def test_damaged_features_end_the_study_before_its_first_trial(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    path = next((tmp_path / "artifacts/features/train").iterdir())
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(DataError, match=f"{path.name} is damaged"), study.opened():
        pass
    assert not study.trials.path.exists()


def test_features_of_earlier_studies_are_removed_and_those_of_running_ones_stay(
    tmp_path: Path,
) -> None:
    first, second = make_study(tmp_path), make_study(tmp_path, seed=2)
    with first.opened():
        with second.opened():
            pass
        assert (first.folder / "features").exists()
    with second.opened():
        assert not (first.folder / "features").exists()
    with first.opened():
        assert (first.folder / "features").exists()


def log_of(root: Path, **values: Any) -> Params:
    """Make the features of a small sample log, and return their parameters."""
    params = make_params(sample__num_rows=3000, features__min_count=2, **values)
    for stage in (collect, ingest, build_features):
        stage(params, root)
    return params


def test_trials_with_other_features_parameters_share_features_of_their_own(tmp_path: Path) -> None:
    params = log_of(tmp_path)
    space = {"features.min_count": {"choice": [2, 9]}}
    study = make_study(tmp_path, params, space=space, confirm=None)
    with study.opened():
        present = study.task("trial", {"features.min_count": 2}).root
        other = study.task("trial", {"features.min_count": 9}).root
        assert study.task("trial", {"features.min_count": 9}).root == other
    few, many = (FeatureState.load(root / FEATURES / "state") for root in (other, present))
    assert sum(few.cardinalities) < sum(many.cardinalities)
    build_features(make_params(sample__num_rows=3000, features__min_count=9), tmp_path)
    for path in (tmp_path / FEATURES).rglob("*"):
        if path.is_file():
            assert (other / path.relative_to(tmp_path)).read_bytes() == path.read_bytes()


def test_features_that_cannot_be_made_are_a_failed_trial_and_damage_ends_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = log_of(tmp_path)

    def refuse(params: Params, root: Path) -> None:
        raise error

    monkeypatch.setattr(trial_features, "build_features", refuse)
    space = {"features.min_count": {"choice": [2, 9]}}
    settings: Any = {"space": space, "confirm": None, "sampler": {"name": "grid"}, "trials": 2}
    study = make_study(tmp_path, params, **settings)
    error: DataError = DataError("the gate stops")
    with study.opened(), InlinePool(1, lambda task: outcome([0.5])) as pool:
        trials = study.search(pool)
    errors = {trial.values["features.min_count"]: trial.outcome.error for trial in trials}
    assert errors == {2: None, 9: "the gate stops"}

    study.trials.path.unlink()
    error = DamageError(Path("artifacts/parquet/x"), "is damaged")
    with (
        study.opened(),
        InlinePool(1, lambda task: outcome([0.5])) as pool,
        pytest.raises(DamageError),
    ):
        study.search(pool)


def test_trials_learn_from_teachers_that_the_coordinator_has_asked(tmp_path: Path) -> None:
    study = linked_study(tmp_path)
    train(study.task("trial", {}).params, tmp_path)
    (tmp_path / "artifacts/model").rename(tmp_path / "teacher")
    distill = {"teachers": ["teacher"], "weight": 0.5}
    space = {"train.distill": {"choice": [None, distill]}}
    study = linked_study(tmp_path, space=space)
    alone, taught = (study.task("trial", {"train.distill": value}) for value in (None, distill))
    assert alone.root != taught.root
    scores = [path for path in (taught.root / "runs/teacher_scores").rglob("*") if path.is_file()]
    times = [path.stat().st_mtime_ns for path in scores]
    first, second = run_trial(alone).result, run_trial(taught).result
    assert first is not None
    assert second is not None
    assert first.logloss != second.logloss
    assert times
    assert [path.stat().st_mtime_ns for path in scores] == times, "a worker does not score again"
    assert study.task("trial", {"train.distill": distill}).root == taught.root
    manifest = tmp_path / "teacher/bundle.json"
    manifest.write_bytes(manifest.read_bytes() + b" ")
    assert make_study(tmp_path, space=space).key != study.key, "another teacher, another study"
