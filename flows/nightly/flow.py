"""The flow nightly: a new day in, a better model promoted or the old one kept.

Each night works in a clone of its own (flows/nightly/clone.py) and ends as a commit with a tag, from which all that follows can be finished
by the next night should this one be killed: the model's version, its promotion, the link artifacts/production, the push.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import State, flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed

from common.config.params import load_params
from common.files import DataError, read_json, remove
from common.subprocess_tree import run_streaming
from features.collect.stage import SOURCE_HOME, natural
from flows.dvc_stages import StageFailed, environment_of, stage_names
from flows.error_logging import errors_in_one_line
from flows.locks import LockedError, nightly_lock, registry_lock
from flows.nightly.clone import LOCK, make_clone, outputs, set_param
from flows.nightly.git import git, has
from flows.nightly.history import write_history
from flows.nightly.log_changes import DATA, arrivals, duplicates, log_files, newest_day
from flows.nightly.record import PRODUCTION, STATES, Night, nights
from flows.nightly.record_commit import push, save
from flows.nightly.registry import MODEL_OUTPUT, MODELS, serving, settle
from flows.train_dlrm import run_stage

SKIPPED = "Skipped"

errors_in_one_line()


@flow(name="nightly")
def nightly(until: str | None = None) -> State[Any]:
    """Train on the log as it is by now (or up to the file `until`), hold the model against the one in production, and keep the better one.

    Ends as Promoted, Kept or NothingNew, or where another night runs as Skipped, all of them completed; why stands in the state's message.
    """
    root = Path.cwd()
    try:
        with nightly_lock(root), source_at(root):
            with registry_lock(root):
                settle(root)
            night = run_night(root, until)
            with registry_lock(root):
                history = write_history(root)
    except LockedError as other:
        return Completed(name=SKIPPED, message=str(other))
    reasons = "".join(f"- {reason}\n" for reason in night.reasons)
    create_markdown_artifact(
        key="night", markdown=f"# {night.headline}\n\n{reasons}\nAll nights: `{history}`\n"
    )
    return Completed(name=STATES[night.outcome], message=night.headline)


def by_hand(until: str | None) -> None:
    """The flow for somebody at a terminal. Raises what it fails by, and LockedError where another night runs."""
    state = nightly(until, return_state=True)
    state.result()  # raises what it failed by
    if state.name == SKIPPED:
        raise LockedError(state.message)


def run_night(root: Path, until: str | None) -> Night:
    """From the clone to the record, its tags and the link; the caller has the lock."""
    started, began_s = datetime.now(UTC), time.perf_counter()
    done = nights(root)
    number, base = done[-1].number + 1 if done else 1, base_of(done, until)
    if uncommitted := git(root, "diff", "--name-only", "HEAD").splitlines():
        get_run_logger().warning(
            "not committed, so no part of this night: %s", ", ".join(uncommitted)
        )
    clone = make_clone(root, "HEAD", base.tag if base else None, {"number": number, "until": until})
    load_params(clone / "params.yaml")  # a typo fails here, at once
    champion = prepare(root, clone, until)
    stages = Stages(clone)
    refused = stages.run()
    changed = model_in(read_lock(clone)) != model_in(lock_at(root, base))
    decision = compare(clone) if changed and not refused else None
    now = log_files(clone)
    night = Night(
        number=number,
        until=until or (list(now)[-1] if now else "no log"),
        outcome="nothing new"
        if not changed and not refused
        else "promoted"
        if decision and decision["promote"]
        else "kept",
        reasons=[refused] if refused else decision["reasons"] if decision else [],
        log=now,
        arrivals=arrivals(base.log if base else {}, now, duplicates(clone)),
        base=base.number if base else None,
        version=decision["challenger"]["version"] if decision else None,
        champion=champion,
        decision=decision,
        warnings=read_json(clone / DATA)["warnings"] + stages.told if decision else [],
        started=started.isoformat(timespec="milliseconds"),
        seconds=round(time.perf_counter() - began_s, 1),
        tasks=stages.seconds,
        data=newest_day(clone, refused=refused is not None) if changed or refused else None,
    )
    with registry_lock(root):
        night = kept_if_overtaken(night, serving(root))
        save(root, clone, night)
        settle(root)
    push(root, get_run_logger().warning)
    remove(clone)
    return night


def kept_if_overtaken(night: Night, serves: str | None) -> Night:
    """The night, without promotion where somebody rolled back meanwhile: its model was held against another than serves by now."""
    if night.outcome != "promoted" or serves == night.champion:
        return night
    return replace(
        night,
        outcome="kept",
        reasons=[
            f"production: {serves} serves by now, and this model was held against {night.champion}"
        ],
    )


class Stages:
    """The stages of a clone. seconds: that each took; told: what was done otherwise than params.yaml says."""

    def __init__(self, clone: Path) -> None:
        self.clone = clone
        self.seconds: dict[str, float] = {}
        self.told: list[str] = []

    def run(self) -> str | None:
        """All that are stale; why the data was refused, if it was. Raises StageFailed where something else was at fault."""
        try:
            for stage in stage_names(self.clone):
                began_s = time.perf_counter()
                self._run(stage)
                self.seconds[stage] = round(time.perf_counter() - began_s, 1)
        except (StageFailed, DataError) as failed:
            if isinstance(failed, StageFailed) and not failed.is_data_fault:
                raise
            return str(failed)
        return None

    def _run(self, stage: str) -> None:
        """A training that cannot go on from the production model, as when vocabularies were fitted anew, begins from nothing: else no
        night would come to a model until somebody changed params.yaml."""
        try:
            run_stage(stage, self.clone)
        except StageFailed as failed:
            if (
                stage != "train"
                or not failed.is_data_fault
                or load_params(self.clone / "params.yaml").train.warm_start_from is None
            ):
                raise
            self.told.append(f"trained from nothing, on all days: {failed}")
            for name in ("warm_start_from", "last_days"):
                set_param(self.clone, "train", name, None)
            run_stage(stage, self.clone)


def base_of(done: list[Night], until: str | None) -> Night | None:
    """The last night whose log ended no later: its vocabularies do not know the future of this one."""
    fit = [night for night in done if until is None or natural(night.until) <= natural(until)]
    return fit[-1] if fit else None


def prepare(root: Path, clone: Path, until: str | None) -> str | None:
    """Tell the clone how far to read, and which model is in production; its version."""
    if until:
        set_param(clone, "data", "until", until)
    link, champion = clone / PRODUCTION, serving(root)
    link.unlink(missing_ok=True)
    if champion:
        link.symlink_to((root / MODELS / champion).resolve())
        return champion
    if load_params(clone / "params.yaml").train.warm_start_from == str(PRODUCTION):
        set_param(
            clone, "train", "warm_start_from", None
        )  # the first night has nothing to go on from
    return None


def lock_at(root: Path, base: Night | None) -> str:
    """dvc.lock as the night began with it: a killed one's clone has its own already."""
    name = f"{base.tag if base else 'HEAD'}:{LOCK}"
    return git(root, "show", name) + "\n" if has(root, name) else ""


def model_in(lock: str) -> str | None:
    """The MD5 of the model that a dvc.lock knows."""
    return outputs(lock).get(MODEL_OUTPUT)


def read_lock(clone: Path) -> str:
    return (clone / LOCK).read_text(encoding="utf-8") if (clone / LOCK).exists() else ""


@task(task_run_name="compare", cache_policy=NO_CACHE)
def compare(clone: Path) -> dict[str, Any]:
    """`clickmill compare` in the clone; what it decided."""
    run_streaming(["clickmill", "compare"], get_run_logger().info, cwd=clone, env=environment_of(clone))
    decision: dict[str, Any] = read_json(clone / "artifacts/decision.json")
    return decision


@contextmanager
def source_at(root: Path) -> Iterator[None]:
    """A relative data.source is meant from root, not from the clone."""
    before = os.environ.get(SOURCE_HOME)
    os.environ[SOURCE_HOME] = str(root.resolve())
    try:
        yield
    finally:
        os.environ.pop(SOURCE_HOME)
        if before:
            os.environ[SOURCE_HOME] = before
