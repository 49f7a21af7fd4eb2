"""A bundle in artifacts/models is never served damaged: it is mended from DVC, or refused."""

import json
import shutil
from pathlib import Path

import pytest
from dvc.repo import Repo
from safetensors.torch import load_file, save_file

from common.bundle_layout import MANIFEST, WEIGHTS, version_of
from common.checked_json import write_checked_json
from common.files import DataError, read_json, sha256_file
from flows.nightly.bundles import (
    MODELS,
    SERVING_OUTPUT,
    check_bundle,
    find_damage,
    restore_bundle,
)
from flows.nightly.clone import MODEL_OUTPUT
from flows.nightly.health import health
from flows.nightly.model_table import show
from flows.nightly.prune import prune
from flows.nightly.record import PRODUCTION
from flows.nightly.repository import NightlyRepository
from serving.serving_bundle import (
    MODEL_FILE,
    NOT_EXPORTED,
    SUFFIX,
    find_serving_bundle,
    load_serving_bundle,
)
from tests.factories.nightly_runs import (
    NOW,
    finish_run,
    flip,
    make_repository,
    make_run,
    record,
    write_bundle,
    write_serving_bundle,
)
from tests.unit.flows.nightly.test_health import MAX_AGE


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> NightlyRepository:
    """Two promoted models, which DVC's cache has too."""
    repository = make_repository(tmp_path_factory.mktemp("two") / "repository", with_stage=True)
    for number in (1, 2):
        finish_run(repository, number, "promoted", NOW, in_dvc=True)
    return repository


@pytest.fixture
def repository(two_runs: NightlyRepository, tmp_path: Path) -> NightlyRepository:
    root = Path(shutil.copytree(two_runs.root, tmp_path / "repository", symlinks=True))
    return NightlyRepository(root)


def cached(
    repository: NightlyRepository, number: int, name: str, output: str = MODEL_OUTPUT
) -> Path:
    """Return a file of a run's output in DVC's cache; "" is the list of its files."""
    cache = repository.root / ".dvc/cache/files/md5"
    md5 = repository.output_hashes(f"night/{number:04d}")[output]
    listed = cache / md5[:2] / md5[2:]
    if not name:
        return listed
    oids = {file["relpath"]: file["md5"] for file in json.loads(listed.read_text())}
    return cache / oids[name][:2] / oids[name][2:]


def add_remote(repository: NightlyRepository, store: Path) -> None:
    """Give the repository a remote that has everything in its cache."""
    with Repo(str(repository.root)) as repo, repo.config.edit() as config:
        config["remote"]["store"] = {"url": str(store)}
        config["core"]["remote"] = "store"
    warnings: list[str] = []
    repository.push(warnings.append)
    assert (warnings, repository.unpushed()) == ([], [])


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_every_file_of_a_bundle_is_checked_and_mended_by_name(
    repository: NightlyRepository, capsys: pytest.CaptureFixture[str]
) -> None:
    run = repository.find("v2")
    bundle = repository.bundle_directory(str(run.version))
    intact = contents(bundle)
    assert len(intact) > 20
    for name in intact:
        flip(bundle / name)
        damage = find_damage(bundle, str(run.version))
        assert damage, name
        assert "\n" not in damage
        assert check_bundle(repository.root, run) is None
        assert contents(bundle) == intact
        line = capsys.readouterr().out
        start = "models    warning: v2.0.0 was damaged, and has been mended from DVC's copy: "
        assert line.startswith(start)
        assert str(bundle) in line


@pytest.mark.parametrize("damage", ["missing file", "extra file", "other model", "link", "nothing"])
def test_a_folder_that_is_not_its_model_is_mended(
    repository: NightlyRepository, damage: str
) -> None:
    run = repository.find("v1")
    bundle = repository.bundle_directory(str(run.version))
    intact = contents(bundle)
    if damage == "missing file":
        (bundle / "history.csv").unlink()
    elif damage == "extra file":
        (bundle / "extra").write_text("")
    else:
        bundle.rename(repository.root / "elsewhere")
    if damage == "other model":
        write_bundle(bundle, 9)
    elif damage == "link":
        bundle.symlink_to(repository.root / "elsewhere")
    assert restore_bundle(repository.root, run) == bundle
    assert contents(bundle) == intact
    assert not bundle.is_symlink()


def test_a_copy_in_the_cache_that_is_damaged_too_is_taken_from_the_remote(
    repository: NightlyRepository, tmp_path: Path
) -> None:
    add_remote(repository, tmp_path / "store")
    run = repository.find("v1")
    bundle = repository.bundle_directory(str(run.version))
    intact = contents(bundle)
    for name in (WEIGHTS, MANIFEST, "state/state.json", ""):
        flip(cached(repository, 1, name))
        shutil.rmtree(bundle)
        assert restore_bundle(repository.root, run) == bundle
        assert contents(bundle) == intact
        assert find_damage(bundle, str(run.version)) is None


def test_a_rollback_to_a_damaged_model_is_refused_and_production_stays(
    repository: NightlyRepository, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its copy in DVC's cache is damaged too, and there is no remote."""
    flip(cached(repository, 1, WEIGHTS))
    run = repository.find("v1")
    bundle = repository.bundle_directory(str(run.version))
    flip(bundle / WEIGHTS)
    damaged, tags = contents(bundle), repository.git.tags("*")
    link = (repository.root / PRODUCTION).readlink()
    for wanted in ("v1", None):
        with pytest.raises(DataError, match=r"v1.0.0 is damaged: .*weights.safetensors: SHA-256"):
            repository.rollback(wanted, None)
    assert contents(bundle) == damaged
    assert repository.git.tags("*") == tags
    assert (repository.root / PRODUCTION).readlink() == link
    show(repository.root)
    _, *rows, problem = capsys.readouterr().out.splitlines()[-4:]
    assert [row.endswith("damaged, see below") for row in rows] == [False, True]
    assert problem.startswith(f"v1.0.0 is damaged: {bundle / WEIGHTS}: SHA-256 ")
    assert problem.endswith("clickmill nightly replay v1.0.0")
    assert health(repository.root, MAX_AGE, NOW).problems == []  # v2 is in production


def test_health_and_the_list_mend_the_model_in_production(
    repository: NightlyRepository, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = repository.root / PRODUCTION
    intact = contents(bundle)
    flip(bundle / WEIGHTS)
    assert health(repository.root, MAX_AGE, NOW).problems == []
    assert contents(bundle) == intact
    flip(bundle / WEIGHTS)
    show(repository.root)
    out = capsys.readouterr().out
    assert out.count("models    warning: v2.0.0 was damaged, and has been mended") == 2
    assert contents(bundle) == intact


def test_a_model_that_cannot_be_loaded_is_not_promoted(repository: NightlyRepository) -> None:
    """All hashes are right, but a tensor has another shape than the parameters say."""
    production = repository.production_version()
    bundle = repository.root / MODELS / "scratch"
    write_bundle(bundle, 3)
    tensors = load_file(bundle / WEIGHTS)
    name = next(iter(tensors))
    save_file(tensors | {name: tensors[name][:1].clone()}, bundle / WEIGHTS)
    manifest = read_json(bundle / MANIFEST)
    manifest["files"][WEIGHTS] = sha256_file(bundle / WEIGHTS)
    write_checked_json(bundle / MANIFEST, manifest)
    version = version_of(bundle)
    bundle.rename(repository.root / MODELS / version)
    run = make_run(3, "promoted", version=version, decision=repository.runs()[0].decision)
    with pytest.raises(DataError, match=rf"v3.0.0 is damaged: .*tensor {name}: "):
        record(repository, run)
    assert repository.production_version() == production
    assert (repository.root / PRODUCTION).resolve().name == production


def test_a_rollback_that_was_killed_before_the_link_was_set_is_finished(
    repository: NightlyRepository,
) -> None:
    """The same command again finishes it, and does not go back to the bad model."""
    good, bad = (repository.find(name) for name in ("v1", "v2"))
    repository.registry.assign(good, "rollback")  # the tag was set, the link was not
    assert (repository.root / PRODUCTION).resolve().name == bad.version
    with pytest.raises(DataError, match=r"killed. It is finished now: v1.0.0 is in production"):
        repository.rollback(None, None)
    assert (repository.root / PRODUCTION).resolve().name == good.version
    (repository.root / PRODUCTION).unlink()
    with pytest.raises(DataError, match=r"v1.0.0 is in production already"):
        repository.rollback("v1", None)
    assert (repository.root / PRODUCTION).resolve().name == good.version


def test_the_second_of_two_rollbacks_at_once_does_not_undo_the_first(
    repository: NightlyRepository,
) -> None:
    seen = repository.assignments()
    assert repository.rollback(None, "first", seen=seen)[1].model == "v1.0.0"
    with pytest.raises(
        DataError, match=r"v1.0.0 was put into production while this rollback began"
    ):
        repository.rollback(None, "second", seen=seen)
    assert repository.production_version() == repository.find("v1").version
    assert repository.rollback("v2", None, seen=seen)[1].model == "v2.0.0"  # it is named


def test_prune_keeps_a_bundle_that_dvc_cannot_give_back(repository: NightlyRepository) -> None:
    for number in (3, 4, 5):
        finish_run(repository, number, "promoted", NOW, in_dvc=True)
    flip(cached(repository, 1, MANIFEST))  # the other files are those of all models
    kept = [str(repository.find(f"v{number}").version) for number in (1, 3, 4, 5)]
    prune(repository.root, 1, dry_run=False)
    folders = [version + suffix for version in kept for suffix in ("", SUFFIX)]
    assert sorted(path.name for path in (repository.root / MODELS).iterdir()) == sorted(folders)
    for name in ("v1", "v2"):
        assert repository.rollback(name, None)[1].model == f"{name}.0.0"
        assert find_serving_bundle(repository.root / PRODUCTION) == serving_of(repository, name)


def test_prune_deletes_nothing_if_the_list_of_a_models_files_is_damaged(
    repository: NightlyRepository,
) -> None:
    """DVC would count all files of that model as unused."""
    finish_run(repository, 3, "promoted", NOW, in_dvc=True)
    listed = cached(repository, 1, "")
    flip(listed)
    cache = repository.root / ".dvc/cache"
    before = contents(cache)
    with pytest.raises(DataError, match=rf"{listed.name}: damaged: .* nothing was deleted"):
        prune(repository.root, 1, dry_run=False)
    assert contents(cache) == before


def test_a_model_in_production_is_not_replaced_by_one_of_the_same_prefix(
    repository: NightlyRepository,
) -> None:
    versions = [str(run.version) for run in repository.runs()]
    assert versions[0][:4] != versions[1][:4]
    for number, version in enumerate(versions, 1):
        assert repository.find(version[:4]).number == number


def test_what_is_damaged_in_the_cache_is_removed_from_it_and_from_the_clone(
    repository: NightlyRepository,
) -> None:
    """Both have the same file, a link. Everything else stays."""
    clone = repository.make_clone("HEAD", "night/0001", {"number": 3})
    assert clone.drop_damaged() == []
    bundle, damaged = clone.root / MODEL_OUTPUT, cached(repository, 1, WEIGHTS)
    before = contents(bundle)
    assert (bundle / WEIGHTS).samefile(damaged)
    flip(damaged)
    assert clone.drop_damaged() == [f"{MODEL_OUTPUT}/{WEIGHTS}"]
    assert not damaged.exists()
    del before[WEIGHTS]
    assert contents(bundle) == before
    flip(cached(repository, 1, ""))
    assert clone.drop_damaged() == [MODEL_OUTPUT]
    assert not bundle.exists()
    assert clone.model_hash() is not None  # dvc.lock stays, so DVC sees that the output is missing


def test_the_output_in_the_cache_is_the_bundle(repository: NightlyRepository) -> None:
    assert MODEL_OUTPUT == "artifacts/model"
    for number in (1, 2):
        bundle = repository.bundle_directory(str(repository.find(f"v{number}").version))
        assert cached(repository, number, WEIGHTS).read_bytes() == (bundle / WEIGHTS).read_bytes()


def serving_of(repository: NightlyRepository, wanted: str) -> Path:
    """Return where the serving bundle of a model is kept."""
    bundle = repository.bundle_directory(str(repository.find(wanted).version))
    return bundle.with_name(bundle.name + SUFFIX)


def test_a_promoted_model_has_its_serving_bundle_beside_it(repository: NightlyRepository) -> None:
    production = find_serving_bundle(repository.root / PRODUCTION)
    assert production == serving_of(repository, "v2").resolve()
    version = repository.find("v2").version
    assert load_serving_bundle(production).manifest.model_version == version
    repository.rollback("v1", None)
    assert (
        find_serving_bundle(repository.root / PRODUCTION) == serving_of(repository, "v1").resolve()
    )


@pytest.mark.parametrize("damage", ["a bit", "missing file", "other model", "link", "nothing"])
def test_a_damaged_serving_bundle_is_mended(repository: NightlyRepository, damage: str) -> None:
    run, serving = repository.find("v2"), serving_of(repository, "v2")
    intact = contents(serving)
    if damage == "a bit":
        flip(serving / MODEL_FILE)
    elif damage == "missing file":
        (serving / MODEL_FILE).unlink()
    else:
        serving.rename(repository.root / "elsewhere")
    if damage == "other model":
        write_serving_bundle(serving, "0" * 12)
    elif damage == "link":
        serving.symlink_to(repository.root / "elsewhere")
    assert check_bundle(repository.root, run) is None
    assert contents(serving) == intact
    assert not serving.is_symlink()


def test_a_rollback_to_a_model_whose_serving_bundle_is_damaged_is_refused(
    repository: NightlyRepository,
) -> None:
    """Its copy in DVC's cache is damaged too, and there is no remote."""
    link, tags = (repository.root / PRODUCTION).readlink(), repository.git.tags("*")
    flip(cached(repository, 1, MODEL_FILE, SERVING_OUTPUT))
    flip(serving_of(repository, "v1") / MODEL_FILE)
    with pytest.raises(DataError, match=r"the serving bundle of v1.0.0 is damaged: .*model.onnx"):
        repository.rollback("v1", None)
    assert (repository.root / PRODUCTION).readlink() == link
    assert repository.git.tags("*") == tags


def test_a_run_without_a_serving_bundle_is_promoted_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = make_repository(tmp_path / "repository")
    version = finish_run(repository, 1, "promoted", NOW)
    assert (repository.root / PRODUCTION).resolve().name == version
    assert "v1.0.0 has no serving bundle" in capsys.readouterr().out
    assert not health(repository.root, MAX_AGE, NOW).problems


def test_a_run_that_exports_nothing_is_promoted_kept_and_pruned_like_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Production has the reason in place of a serving bundle, which nobody warns about."""
    repository = make_repository(tmp_path / "repository", with_stage=True)
    for number in (1, 2, 3, 4):
        finish_run(repository, number, "promoted", NOW, in_dvc=True, exported=False)
    run, folder = repository.find("v4"), serving_of(repository, "v4")
    assert (repository.root / PRODUCTION).resolve().name == run.version
    output = capsys.readouterr().out
    assert f"v4.0.0 has no serving bundle: model {run.version}: it was not exported" in output
    assert "warning" not in output
    with pytest.raises(
        DataError, match=r"production: no serving bundle here: model \w{12}: it was"
    ):
        find_serving_bundle(repository.root / PRODUCTION)
    intact = contents(folder)
    assert list(intact) == [NOT_EXPORTED]
    assert not health(repository.root, MAX_AGE, NOW).problems

    flip(folder / NOT_EXPORTED, place=8)  # in the version
    assert check_bundle(repository.root, run) is None
    assert contents(folder) == intact
    prune(repository.root, 1, dry_run=False)
    assert not serving_of(repository, "v1").exists()
    assert repository.rollback("v1", None)[1].model == "v1.0.0"
    assert list(contents(serving_of(repository, "v1"))) == [NOT_EXPORTED]
