"""A past night once more, from its tag: its commit's code, its log files, and what it went on from. It must come out the same."""

from collections.abc import Callable
from pathlib import Path

from common.files import remove
from features.collect.stage import RAW
from flows.dvc_stages import FIRST, repro, stage_names
from flows.nightly.clone import LOCK, make_clone, outputs
from flows.nightly.git import git, has
from flows.nightly.record import NIGHT, PRODUCTION
from flows.nightly.registry import find, get, restore

REPLAY = Path("runs/replay")


def replay(root: Path, wanted: str, log: Callable[[str], None]) -> list[str]:
    """Do a model's night again in runs/replay; the outputs that differ, and are left there, none if all is well.

    Raises DataError where there is no such model or its log files are neither here nor at DVC's remote, StageFailed where a stage fails.
    """
    night = find(root, wanted)
    base = (
        f"{NIGHT}{night.base:04d}"
        if night.base
        else f"{night.tag}^"
        if has(root, f"{night.tag}^:{LOCK}")
        else None
    )
    remove(root / REPLAY)
    clone = make_clone(root, night.tag, base, {"replay": night.number}, REPLAY)
    if not base:
        remove(clone / LOCK)
    remove(clone / RAW)
    get(root, str(RAW), night, clone / RAW)  # not from data.source, which has gone on since
    if night.champion:
        (clone / PRODUCTION).symlink_to(restore(root, find(root, night.champion)).resolve())
    for stage in stage_names(clone):
        if stage != FIRST:
            repro(stage, clone, log, again=True)
    then, now = (
        outputs(git(root, "show", f"{night.tag}:{LOCK}")),
        outputs((clone / LOCK).read_text(encoding="utf-8")),
    )
    differing = [
        path for path, md5 in then.items() if not path.startswith(str(RAW)) and now.get(path) != md5
    ]
    if not differing:
        remove(clone)
    return differing
