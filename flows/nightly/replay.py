"""Executes a past nightly run again from its tag, and compares the outputs bit for bit."""

from collections.abc import Callable
from pathlib import Path

from common.files import remove
from common.layout import RAW
from flows.dvc_stages import FIRST_STAGE, repro, stage_names
from flows.locks import registry_lock
from flows.nightly.clone import DVC_LOCK, output_hashes
from flows.nightly.record import run_tag
from flows.nightly.repository import NightlyRepository

REPLAY = Path("runs/replay")


def replay(root: Path, wanted: str, log: Callable[[str], None]) -> list[str]:
    """Execute the nightly run of a model again in runs/replay.

    It uses the code and params.yaml of the run's commit, the log files of that time, and the
    artifacts that the run began with.

    Args:
        root: The repository.
        wanted: A model, as `NightlyRepository.find` takes it.
        log: Called with each line that the stages print.

    Returns:
        The paths of the outputs that differ. If there are any, runs/replay is kept.

    Raises:
        DataError: There is no such model, or its log files are neither in DVC's cache nor at its
            remote.
        StageFailed: A stage failed.
    """
    repository = NightlyRepository(root)
    run = repository.find(wanted)
    base = None
    if run.base:
        base = run_tag(run.base)
    elif repository.read_dvc_lock(f"{run.tag}^"):
        base = f"{run.tag}^"
    remove(root / REPLAY)
    clone = repository.make_clone(run.tag, base, {"replay": run.number}, REPLAY)
    if not base:
        remove(clone.root / DVC_LOCK)
    remove(clone.root / RAW)
    # The log files come from DVC, because those at data.source may have changed since.
    repository.fetch_output(str(RAW), run, clone.root / RAW)
    if run.champion:
        with registry_lock(root):
            champion = repository.restore_bundle(repository.find(run.champion))
        clone.link_champion(champion)
    for stage in stage_names(clone.root):
        if stage != FIRST_STAGE:
            repro(stage, clone.root, log, again=True)
    expected = repository.output_hashes(run.tag)
    actual = output_hashes(clone.read_dvc_lock(), str(clone.root))
    differing = [
        path
        for path, md5 in expected.items()
        if not path.startswith(str(RAW)) and actual.get(path) != md5
    ]
    if not differing:
        clone.remove()
    return differing
