"""The flow `nightly`: train on new log data, and promote the model if it is not worse.

Each run works in a clone of the repository (clone.py) and ends as a commit with a tag. The model's
version, its promotion, the link artifacts/production and the push follow from the record in that
commit, so the next run can finish what a killed run left (repository.py).
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import State, flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed

from common.config.loading import check_json
from common.config.params import Serve
from common.files import DataError, read_json
from common.layout import DECISION
from common.printable import markdown_text
from common.subprocess_tree import CommandFailed, run_streaming
from features.collect.stage import SOURCE_HOME
from flows.dvc_stages import StageFailed, environment_of, stage_names
from flows.error_logging import log_expected_errors_in_one_line
from flows.git_commands import forget_calling_git
from flows.locks import LockedError, nightly_lock, registry_lock
from flows.nightly.clone import Clone
from flows.nightly.history import write_history
from flows.nightly.log_changes import (
    find_log_changes,
    read_duplicates,
    read_log_files,
    read_newest_day,
    read_warnings,
)
from flows.nightly.record import PRODUCTION, STATES, NewDecision, NightlyRun, Outcome
from flows.nightly.repository import NightlyRepository
from flows.nightly.served_traffic import (
    COMMAND,
    NOTHING,
    Served,
    compare_served,
    describe_served,
)
from flows.train_dlrm import run_stage

SKIPPED = "Skipped"

log_expected_errors_in_one_line()


@flow(name="nightly")
def nightly(until: str | None = None) -> State[Any]:
    """Train on the log at data.source, and promote the model if it is not worse than the champion.

    Args:
        until: The name of the last log file to use; None means all files.

    Returns:
        A completed state that is called Promoted, Rejected or NothingNew, or Skipped if another
        nightly run is active. Its message gives the reason.
    """
    forget_calling_git()
    repository = NightlyRepository(Path.cwd())
    repository.check(get_run_logger().warning)
    try:
        with nightly_lock(repository.root), source_relative_to(repository.root):
            with registry_lock(repository.root):
                repository.apply_records()  # finishes what a killed run left
            run = train_and_record(repository, until)
            with registry_lock(repository.root):
                history = write_history(repository)
    except LockedError as error:
        return Completed(name=SKIPPED, message=str(error))
    publish(run, history)
    return Completed(name=STATES[run.outcome], message=run.headline)


def run_by_hand(until: str | None) -> None:
    """Execute the flow for somebody at a terminal.

    Raises:
        LockedError: Another nightly run is active.
        Exception: Whatever the flow failed with.
    """
    state = nightly(until, return_state=True)
    state.result()
    if state.name == SKIPPED:
        raise LockedError(state.message)


def train_and_record(repository: NightlyRepository, until: str | None) -> NightlyRun:
    """Train and compare a model in a clone, record the outcome, and promote a model that passed."""
    start_s = time.perf_counter()
    logger = get_run_logger()
    plan = make_plan(repository, until)
    for damage in repository.read_records().damaged.values():
        logger.warning("a record is not read: %s", damage)
    if uncommitted := repository.uncommitted_files():
        logger.warning(
            "uncommitted changes are not part of this nightly run: %s", ", ".join(uncommitted)
        )
    clone = prepare_clone(repository, plan)
    work = work_in(clone, repository.model_hash(plan.base_ref))
    served = examine_served(repository, plan, clone, work)
    run = describe(plan, clone, work, served, time.perf_counter() - start_s)
    with registry_lock(repository.root):
        run = reject_if_outdated(run, repository.production_version())
        repository.record(clone, run)
        repository.apply_records()  # registers and promotes the model
    repository.push(logger.warning)
    clone.remove()
    return run


@dataclass(frozen=True)
class Plan:
    """The facts about a nightly run that are known when it begins.

    Attributes:
        number: The number of the run.
        until: The name of the last log file to use; None means all files.
        commit: The commit whose code and params.yaml the run uses. HEAD may move meanwhile.
        base: The run whose artifacts this one begins with, None for those of the commit.
        champion: The model version in production.
        started: When the run began.
    """

    number: int
    until: str | None
    commit: str
    base: NightlyRun | None
    champion: str | None
    started: datetime

    @property
    def base_ref(self) -> str:
        """The git revision whose artifacts the run begins with."""
        return self.base.tag if self.base else self.commit


def make_plan(repository: NightlyRepository, until: str | None) -> Plan:
    """Plan the next run from the records of the runs before it."""
    return Plan(
        number=repository.next_number(),
        until=until,
        commit=repository.git.run("rev-parse", "HEAD^{commit}"),
        base=repository.base_for(until),
        champion=repository.production_version(),
        started=datetime.now(UTC),
    )


def prepare_clone(repository: NightlyRepository, plan: Plan) -> Clone:
    """Make the clone, with the champion's bundle and with params.yaml for this run."""
    purpose = {"number": plan.number, "until": plan.until}
    clone = repository.make_clone(plan.commit, plan.base.tag if plan.base else None, purpose)
    params = clone.load_params()  # reports a mistake in params.yaml before any stage runs
    if plan.until:
        clone.set_param("data", "until", plan.until)
    clone.link_champion(repository.bundle_directory(plan.champion) if plan.champion else None)
    if plan.champion is None:  # there is no model to start from, or to learn from, yet
        if params.train.warm_start_from == str(PRODUCTION):
            clone.set_param("train", "warm_start_from", None)
        if params.train.distill and str(PRODUCTION) in params.train.distill.teachers:
            clone.set_param("train", "distill", None)
    return clone


@dataclass
class StageResults:
    """The results of the stages of a nightly run.

    Attributes:
        seconds: The duration of each finished stage.
        warnings: Where the run did not follow params.yaml.
        refusal: Why a stage refused the data, None if none did.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    refusal: str | None = None


@dataclass(frozen=True)
class Work:
    """The result of the work of a nightly run in its clone.

    Attributes:
        stages: The results of the stages.
        has_new_model: Whether the bundle is not that of the run before.
        decision: The contents of decision.json, None if there was nothing to compare.
    """

    stages: StageResults
    has_new_model: bool
    decision: dict[str, Any] | None


def work_in(clone: Clone, model_before: str | None) -> Work:
    """Run the stages and compare the model; do so again if a file of DVC's cache was damaged.

    The stages check what they read, and DVC does not: it links a damaged file of its cache into
    every clone. So the cache is checked after a failure, which would otherwise return every night.

    Args:
        clone: The clone of the run.
        model_before: The MD5 of the bundle that the clone began with.

    Raises:
        CommandFailed: A stage or the comparison failed, and not for a damaged file.
    """
    try:
        work = _work_once(clone, model_before)
    except CommandFailed:
        if not _mend(clone):
            raise
    else:
        if work.stages.refusal is None or not _mend(clone):
            return work
    return _work_once(clone, model_before)


def _work_once(clone: Clone, model_before: str | None) -> Work:
    stages = run_stages(clone)  # collect copies the new log files, and the others follow
    has_new_model = clone.model_hash() != model_before
    decision = None
    if has_new_model and not stages.refusal:
        decision = compare(clone.root)
    return Work(stages, has_new_model, decision)


def _mend(clone: Clone) -> bool:
    """Remove what is damaged in the clone and in DVC's cache; return whether anything was."""
    damaged = clone.drop_damaged()
    if damaged:
        get_run_logger().warning(
            "these files were damaged in DVC's cache and have been deleted, so the stages that "
            "make them run again: %s",
            ", ".join(damaged),
        )
    return bool(damaged)


def run_stages(clone: Clone) -> StageResults:
    """Run the stages that are not up to date, until one refuses the data.

    Raises:
        StageFailed: A stage failed, and the data is not at fault.
    """
    results = StageResults()
    try:
        for stage in stage_names(clone.root):
            start_s = time.perf_counter()
            if stage == "train":
                results.warnings += train(clone)
            else:
                run_stage(stage, clone.root)
            results.seconds[stage] = round(time.perf_counter() - start_s, 1)
    except DataError as error:
        results.refusal = str(error)
    except StageFailed as error:
        if not error.is_data_fault:
            raise
        results.refusal = str(error)
    return results


def train(clone: Clone) -> list[str]:
    """Run the stage train; if an earlier bundle is refused, train from scratch on all days instead.

    The production model's weights do not fit, and it cannot teach, when vocabularies were fitted
    again. Without training from scratch, no nightly run would make a model until somebody changed
    params.yaml.

    Returns:
        A warning if the model was trained from scratch.
    """
    try:
        run_stage("train", clone.root)
    except StageFailed as error:
        params = clone.load_params().train
        if not error.is_data_fault or not (params.warm_start_from or params.distill):
            raise
        for name in ("warm_start_from", "last_days", "distill"):
            clone.set_param("train", name, None)
        run_stage("train", clone.root)
        taught = ", without teachers" if params.distill else ""
        return [f"trained from scratch on all days{taught}: {error}"]
    return []


def examine_served(repository: NightlyRepository, plan: Plan, clone: Clone, work: Work) -> Served:
    """Compare the traffic that was served with the new days, if params.yaml names a request log."""
    params = clone.load_params().serve
    if params.request_log is None or work.stages.refusal:
        return NOTHING
    start_s = time.perf_counter()
    served = compare_traffic(
        repository.root, clone.root, params, plan.base, log_changes_in(clone, plan)
    )
    work.stages.seconds[COMMAND] = round(time.perf_counter() - start_s, 1)
    for line in served.warnings:
        get_run_logger().warning(line)
    return served


@task(task_run_name="served", cache_policy=NO_CACHE)
def compare_traffic(
    root: Path,
    clone: Path,
    params: Serve,
    base: NightlyRun | None,
    log_changes: Mapping[str, Sequence[str]],
) -> Served:
    """Compare served traffic with the new days of the log (served_traffic.py)."""
    return compare_served(clone, root, params, base, log_changes, get_run_logger().info)


@task(task_run_name="compare", cache_policy=NO_CACHE)
def compare(root: Path) -> dict[str, Any]:
    """Compare the model in the clone with the champion; return the contents of decision.json."""
    command = ["clickmill", "stage", "compare"]
    run_streaming(command, get_run_logger().info, cwd=root, env=environment_of(root))
    decision: dict[str, Any] = read_json(root / DECISION)
    check_json(NewDecision, decision, root / DECISION, "start another nightly run")
    return decision


def describe(
    plan: Plan,
    clone: Clone,
    work: Work,
    served: Served,
    seconds: float,
) -> NightlyRun:
    """Describe the run in a record, with the log and the data that its clone contains."""
    stages, has_new_model, decision = work.stages, work.has_new_model, work.decision
    log_files = read_log_files(clone.root)
    refused = stages.refusal is not None
    newest_day, warnings = None, []
    if has_new_model or refused:
        newest_day = read_newest_day(clone.root, refused)
    if decision:
        warnings = read_warnings(clone.root) + stages.warnings
    columns = {"versions": {"__all__": {"columns"}}}  # of hundreds; the largest figures are kept
    return NightlyRun(
        number=plan.number,
        until=plan.until or (list(log_files)[-1] if log_files else "no log"),
        outcome=decide_outcome(has_new_model, stages.refusal, decision),
        reasons=find_reasons(stages.refusal, decision),
        log_files=log_files,
        log_changes=log_changes_in(clone, plan),
        base=plan.base.number if plan.base else None,
        version=decision["challenger"]["version"] if decision else None,
        champion=plan.champion,
        decision=decision,
        warnings=warnings + served.warnings,
        started=plan.started,
        seconds=round(seconds, 1),
        stage_seconds=stages.seconds,
        newest_day=newest_day,
        served=(
            served.figures.model_dump(mode="json", exclude=columns) if served.figures else None
        ),
    )


def log_changes_in(clone: Clone, plan: Plan) -> dict[str, list[str]]:
    """Return how the log of a run differs from that of the run before."""
    files_before = plan.base.log_files if plan.base else {}
    return find_log_changes(files_before, read_log_files(clone.root), read_duplicates(clone.root))


def decide_outcome(
    has_new_model: bool, refusal: str | None, decision: Mapping[str, Any] | None
) -> Outcome:
    """Return the outcome of a run from what its stages and the comparison came to."""
    if refusal:
        return "rejected"
    if not has_new_model or decision is None:
        return "nothing new"
    if decision["promote"]:
        return "promoted"
    return "rejected"


def find_reasons(refusal: str | None, decision: Mapping[str, Any] | None) -> list[str]:
    """Return why the outcome is a rejection: the refusal of the data, or the checks that failed."""
    if refusal:
        return [refusal]
    return list(decision["reasons"]) if decision else []


def reject_if_outdated(run: NightlyRun, production: str | None) -> NightlyRun:
    """Reject the model if a rollback has replaced the champion that it was compared with."""
    if run.outcome != "promoted" or production == run.champion:
        return run
    reason = (
        f"production: model {production} is in production now, "
        f"but this model was compared with {run.champion}"
    )
    return run.model_copy(update={"outcome": "rejected", "reasons": [reason]})


def publish(run: NightlyRun, history: Path) -> None:
    """Attach the outcome, its reasons and the path of the history page to the flow run."""
    reasons = "".join(f"- {markdown_text(reason)}\n" for reason in run.reasons)
    figures = run.served_figures
    served = f"Served: {markdown_text(describe_served(figures))}\n\n" if figures else ""
    create_markdown_artifact(
        key="nightly-run",
        markdown=(
            f"# {markdown_text(run.headline)}\n\n{reasons}\n{served}All nightly runs: `{history}`\n"
        ),
    )


@contextmanager
def source_relative_to(root: Path) -> Iterator[None]:
    """Let stages that run in the clone resolve a relative data.source from root."""
    before = os.environ.get(SOURCE_HOME)
    os.environ[SOURCE_HOME] = str(root.resolve())
    try:
        yield
    finally:
        if before is None:
            del os.environ[SOURCE_HOME]
        else:
            os.environ[SOURCE_HOME] = before
