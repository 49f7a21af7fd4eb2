"""A disk that is full at the end of a nightly run: one line, production stays, the run is finished.

The disk has room for some of what the end of a run writes: the record, the commit, the tags, the
bundle for production, the data at DVC's remote, the history page.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from dvc.repo import Repo

from common.bundle_layout import MODEL, version_of
from common.full_disk import find_full_disk
from common.layout import SERVING
from flows.nightly.clone import Clone
from flows.nightly.history import write_history
from flows.nightly.record import PRODUCTION, NightlyRun
from flows.nightly.repository import NightlyRepository
from tests.factories.nightly_runs import (
    NOW,
    finish_run,
    make_decision,
    make_repository,
    make_run,
    write_bundle,
    write_serving_bundle,
)
from tests.factories.small_disk import small_disk
from training.inference.bundle import load_bundle

pytestmark = pytest.mark.slow

KIB = 1024
ALL_KIB = 512 * KIB
PAGE_KIB = 4  # what a small file takes
RECORD_KIB = 64  # the record, its commit and the tags take less, and the bundle takes more


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[int], None]]]:
    """A file system in memory, and a function that leaves a number of KiB free on it."""
    with small_disk(tmp_path / "disk", ALL_KIB * KIB) as leave:
        yield tmp_path / "disk", lambda kib: leave(kib * KIB)


def make_clone(repository: NightlyRepository, number: int) -> tuple[Clone, NightlyRun]:
    """Return a clone in which a run has trained a model, and the record of the run."""
    clone = repository.make_clone("HEAD", None, {"number": number})
    for output in (MODEL, SERVING):
        shutil.rmtree(clone.root / output, ignore_errors=True)
    write_bundle(clone.root / MODEL, number)
    version = version_of(clone.root / MODEL)
    write_serving_bundle(clone.root / SERVING, version)
    with Repo(str(clone.root)) as repo:
        repo.commit(force=True)
    return clone, make_run(
        number,
        "promoted",
        version=version,
        started=NOW + timedelta(days=number),
        decision=make_decision(version),
    )


def finish(repository: NightlyRepository, clone: Clone, run: NightlyRun, said: list[str]) -> None:
    """Do what flows/nightly/flow.py does at the end of a run."""
    repository.record(clone, run)
    repository.apply_records()
    repository.push(said.append)
    clone.remove()
    write_history(repository)


def test_a_disk_that_is_full_at_the_end_of_a_run(
    disk: tuple[Path, Callable[[int], None]],
) -> None:
    place, leave = disk
    repository = make_repository(place / "repository", with_stage=True)
    with Repo(str(repository.root)) as repo, repo.config.edit() as config:
        config["remote"]["store"] = {"url": str(place / "store")}
        config["core"]["remote"] = "store"
    repository.git.commit("A remote", "--all")
    finish_run(repository, 1, "promoted", NOW, in_dvc=True)
    failures: list[Exception] = []
    number, kib, has_finished = 2, 0, False
    while not has_finished:
        leave(ALL_KIB)
        clone, run = make_clone(repository, number)
        production, said = (repository.root / PRODUCTION).resolve().name, list[str]()
        leave(kib)
        try:
            finish(repository, clone, run, said)
        except Exception as error:
            print(f"{kib} KiB: {find_full_disk(error) or error}")
            failures.append(error)
        else:
            has_finished = not said  # else the remote was full
        leave(ALL_KIB)
        is_tagged = run.tag in repository.git.tags("night/*")
        served = load_bundle(repository.root / PRODUCTION).version
        assert served in ({production, run.version} if is_tagged else {production})
        # The next run:
        said.clear()
        repository.apply_records()
        if not is_tagged:
            clone = repository.make_clone("HEAD", None, {"number": number})
            finish(repository, clone, run, said)
        repository.push(said.append)
        write_history(repository)
        assert not said
        assert repository.unpushed() == []
        assert load_bundle(repository.root / PRODUCTION).version == run.version
        assert [one.number for one in repository.runs()] == list(range(1, number + 1))
        number += 1
        kib += PAGE_KIB if kib < RECORD_KIB else 2 * RECORD_KIB
    assert {"GitError", "FullDiskError"} <= {type(error).__name__ for error in failures}
    for error in failures:
        full = find_full_disk(error)
        assert full, error
        assert re.match("No space left on device: [^\n]+$", str(full))
