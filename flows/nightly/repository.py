"""The repository of nightly runs: their records, their models, and the model in production."""

import getpass
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common.config.loading import ConfigError
from common.files import DataError
from common.layout import NIGHTLY_CLONE, PARAMS
from common.logs import get_logger
from common.masking import mask_passwords
from common.natural_order import natural_order_key
from flows.adapters.dvc import check_folder_name
from flows.git_commands import OUR_REFS, Git
from flows.nightly.bundles import MODELS, restore_bundle, restore_serving_bundle
from flows.nightly.clone import DVC_LOCK, DVC_YAML, MODEL_OUTPUT, Clone, output_hashes
from flows.nightly.dvc_storage import fetch_output, has_remote, push
from flows.nightly.record import (
    PRODUCTION,
    RECORD,
    REMEDY,
    RUN_TAG_PREFIX,
    NightlyRun,
    read_record,
    run_tag,
)
from flows.nightly.registry import ASSIGNMENT_PREFIX, MODEL_PREFIX, Assignment, ModelRegistry
from serving.serving_bundle import SUFFIX, find_beside, reason_not_exported

UNPUSHED = f"{OUR_REFS}unpushed/"  # refs to runs whose data is not at DVC's remote yet
COMMITTED = (PARAMS, DVC_YAML, Path(".dvc/config"))  # what a nightly run needs of its commit
RUN_TAG = re.compile(rf"{RUN_TAG_PREFIX}(\d{{4,}})")
MIN_VERSION_DIGITS = 4  # of the beginning of a model version that names a model

log = get_logger("models")


class Records(NamedTuple):
    """The records of all finished runs in their order.

    Attributes:
        runs: Those that can be read.
        damaged: Why another one cannot be read, in one line, by its tag.
    """

    runs: list[NightlyRun]
    damaged: dict[str, str]

    @property
    def newest(self) -> NightlyRun | None:
        """The last run, None if there is none or its record is damaged."""
        if not self.runs or any(_number_of(tag) > self.runs[-1].number for tag in self.damaged):
            return None
        return self.runs[-1]


class NightlyRepository:
    """A git repository, and everything that nightly runs keep in it.

    The records are the truth: a run exists as soon as its commit has the tag night/NNNN. The model
    registry, the link artifacts/production and the pushes follow from the records, so
    `apply_records` and `push` finish what a killed run left.

    Methods that change something expect the caller to hold the locks of flows/locks.py.

    Attributes:
        root: The repository's directory.
        git: Runs git in it.
        registry: Its model registry.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.git = Git(root)
        self.registry = ModelRegistry(self.git)

    # Records

    def read_records(self) -> Records:
        """Return the records of all finished runs, and name those that are damaged.

        Raises:
            ConfigError: All runs are those of another project in this git repository.
        """
        tags = [tag for tag in self.git.tags(f"{RUN_TAG_PREFIX}*") if RUN_TAG.fullmatch(tag)]
        records = Records([], {})
        contents = self.git.read_files([f"{tag}:./{RECORD}" for tag in tags])
        if tags and not any(contents):
            raise ConfigError(
                f"no tag {RUN_TAG_PREFIX}* has a {RECORD} in {self.root.resolve()}; another "
                "project of this git repository has nightly runs, and only one can have them, so "
                "give this project a repository of its own"
            )
        for tag, content in zip(tags, contents, strict=True):
            try:
                if content is None:
                    raise DataError(f"{tag}: {RECORD} not found; {REMEDY.format(tag=tag)}")
                records.runs.append(read_record(content, tag))
            except DataError as error:
                records.damaged[tag] = str(error)
        return records

    def runs(self) -> list[NightlyRun]:
        """Return the records of all finished runs in their order.

        Raises:
            DataError: A record is damaged.
        """
        records = self.read_records()
        for damage in records.damaged.values():
            raise DataError(damage)
        return records.runs

    def next_number(self) -> int:
        """Return the number of the next run. It was not the number of any run before."""
        tags = self.git.tags(f"{RUN_TAG_PREFIX}*")
        numbers = [_number_of(tag) for tag in tags if RUN_TAG.fullmatch(tag)]
        return max([*numbers, self.registry.last_model()]) + 1

    def find(self, wanted: str) -> NightlyRun:
        """Return the run that made a model.

        Args:
            wanted: v7.0.0, v7, 7, dlrm@v7.0.0, night/0007, or at least four digits of the model
                version.

        Raises:
            DataError: No run made such a model, or several did.
        """
        runs, damaged = self.read_records()
        with_model = [run for run in runs if run.version]
        matches = [run for run in runs if wanted in _names_of(run)]
        if not matches and len(wanted) >= MIN_VERSION_DIGITS:
            matches = [run for run in with_model if str(run.version).startswith(wanted)]
            if len({run.version for run in matches}) > 1:
                names = ", ".join(f"{run.model} ({run.version})" for run in matches[-5:])
                raise DataError(f"{wanted!r} is the beginning of several models: {names}")
        if not matches:
            for tag, damage in damaged.items():
                if wanted in _names_of_tag(tag):
                    raise DataError(damage)
            newest = ", ".join(f"{run.model} ({run.version})" for run in with_model[-5:])
            unreadable = f"; the records of {', '.join(damaged)} are damaged" if damaged else ""
            raise DataError(
                f"no model {wanted!r} is registered; the newest are {newest or 'none yet'}"
                f"{unreadable}"
            )
        run = matches[-1]
        if not run.version:
            raise DataError(f"{wanted}: this nightly run made no model. {run.headline}")
        return run

    def base_for(self, until: str | None) -> NightlyRun | None:
        """Return the run whose artifacts a new run begins with.

        It is the last run whose log ends no later. The vocabularies of a run whose log ends later
        would contain values of this run's future.
        """
        runs = self.read_records().runs
        if until is not None:
            runs = [run for run in runs if natural_order_key(run.until) <= natural_order_key(until)]
        return runs[-1] if runs else None

    def record(self, clone: Clone, run: NightlyRun) -> None:
        """Commit the record, params.yaml and dvc.lock in the clone, and tag the commit here.

        No branch moves. When the tag is set, the run is finished.
        """
        commit = clone.commit_record(run, self.git.author())
        self.git.run("fetch", "-q", "--no-tags", str(clone.top.resolve()), commit)
        self.git.run("update-ref", f"{UNPUSHED}{run.number:04d}", commit)
        self.git.tag(run.tag, run.headline, commit)

    # Clones

    def make_clone(
        self, ref: str, base: str | None, purpose: Mapping[str, Any], path: Path = NIGHTLY_CLONE
    ) -> Clone:
        """Make a clone below root, as `Clone.make` describes."""
        return Clone.make(self.git, ref, base, purpose, self.root / path)

    def read_dvc_lock(self, revision: str) -> str:
        """Return the text of dvc.lock at a git revision, empty where it has none."""
        name = f"{revision}:./{DVC_LOCK}"
        return self.git.run("show", name) + "\n" if self.git.exists(name) else ""

    def output_hashes(self, revision: str) -> dict[str, str]:
        """Return the MD5 of every output of dvc.lock at a git revision, by path."""
        return output_hashes(self.read_dvc_lock(revision), revision)

    def model_hash(self, revision: str) -> str | None:
        """Return the MD5 of the bundle in dvc.lock at a git revision, None if there is none."""
        return self.output_hashes(revision).get(MODEL_OUTPUT)

    def uncommitted_files(self) -> list[str]:
        """Return the tracked files of the checkout with changes that are not committed."""
        return self.git.run("diff", "--name-only", "--relative", "HEAD").splitlines()

    def check(self, warn: Callable[[str], None]) -> None:
        """Check what a nightly run needs of git, also at its end, before it trains.

        Args:
            warn: Gets a line about an operation of the user's that is not finished.

        Raises:
            ConfigError: Something that the run needs is not committed.
            GitError: There is no repository, or it cannot be written.
        """
        check_folder_name(self.root)
        self.check_committed()
        self.git.check_writable()
        if operation := self.git.operation_in_progress():
            commit = self.git.run("rev-parse", "--short", "HEAD")
            warn(f"a {operation} is in progress; this nightly run uses the commit {commit}")

    def check_committed(self) -> None:
        """Check that the last commit contains what a nightly run needs of it.

        Raises:
            ConfigError: Something is not committed, or another project in the repository has
                nightly runs.
            GitError: There is no repository.
        """
        self.git.prefix()  # fails where there is no repository
        if not self.git.exists("HEAD"):
            raise ConfigError(
                f"{self.root.resolve()}: the repository has no commit yet, and a nightly run uses "
                "what is committed; run `git add -A` and `git commit -m all`"
            )
        self.read_records()  # refuses those of another project
        for path in COMMITTED:
            if not self.git.exists(f"HEAD:./{path}"):
                raise ConfigError(
                    f"{path} is not in the last commit, and a nightly run uses what is committed; "
                    f"run `git add --force {path}` and `git commit`"
                )

    # Promotion

    def assignments(self) -> list[Assignment]:
        """Return all events that put a model into production; the last one's is there now."""
        return self.registry.assignments()

    def production_version(self) -> str | None:
        """Return the model version in production, None if no model was ever promoted."""
        assignments = self.assignments()
        return self._read_run(assignments[-1].run).version if assignments else None

    def apply_records(self) -> None:
        """Register the models of all runs, and promote the last run's model if it passed.

        It does only what is still missing, so it finishes what a killed run left, at any point.

        Raises:
            DataError: The bundle that is to be in production cannot be loaded or mended.
        """
        tags = (RUN_TAG_PREFIX, MODEL_PREFIX, ASSIGNMENT_PREFIX)
        self.git.remove_ref_locks([UNPUSHED, *(f"refs/tags/{prefix}" for prefix in tags)])
        records = self.read_records()
        self.registry.register(records.runs)
        newest = records.newest
        if newest and newest.outcome == "promoted":
            assigned_runs = {assignment.run for assignment in self.assignments()}
            if newest.number not in assigned_runs:
                self.promote(newest, newest.headline)
        self.update_production_link()

    def promote(self, run: NightlyRun, reason: str) -> None:
        """Put the model of a run into production: the tag first, then the link.

        Raises:
            DataError: The bundle or its serving bundle cannot be loaded or mended. Production is
                as it was.
        """
        self._check_link_can_be_set()
        bundle = self._restore_for_production(run)
        beside = bundle.with_name(bundle.name + SUFFIX)
        if not_exported := reason_not_exported(beside):
            log.info(f"{run.model} has no serving bundle: {not_exported}")
        elif not find_beside(bundle):
            log.warning(
                f"{run.model} has no serving bundle, because its nightly run exported none; servers"
                f" go on with the model before it. To make one: clickmill export --model"
                f" {MODELS / bundle.name} --output {MODELS / beside.name}"
            )
        target = self._link_target(bundle)
        self.registry.assign(run, reason)
        self._set_link(target)

    def rollback(
        self,
        wanted: str | None,
        reason: str | None,
        *,
        anyway: bool = False,
        seen: Sequence[Assignment] | None = None,
    ) -> tuple[str, NightlyRun]:
        """Put an earlier model into production.

        Args:
            wanted: The model, as `find` takes it; None means the model that was in production
                before the present one.
            reason: Recorded with the rollback.
            anyway: Accept a model that its run rejected.
            seen: The assignments when the user asked. If there are more now and no model is named,
                the present model is not the one that the user means.

        Returns:
            The name of the model that was in production, and the run whose model is there now.

        Raises:
            DataError: There is no such model, its bundle cannot be loaded or mended, or its run
                rejected it and anyway is False. Production is as it was.
        """
        assignments = self.assignments()
        if not assignments:
            raise DataError(
                "no model is in production yet; run `clickmill nightly run` to make the first"
            )
        current = f"v{assignments[-1].run}.0.0"
        if wanted is None:
            if seen is not None and len(seen) < len(assignments):
                raise DataError(
                    f"{current} was put into production while this rollback began "
                    f"({assignments[-1].reason}); repeat the rollback if it is still wanted"
                )
            self._finish_killed_step(current)
            wanted = _model_before(assignments)
        run = self.find(wanted)
        if run.model == current:
            self.update_production_link()  # a step before may have been killed
            raise DataError(f"{run.model} is in production already")
        if run.outcome != "promoted" and not anyway:
            raise DataError(
                f"{run.model} was rejected: {'; '.join(run.reasons)}; "
                "to put it into production all the same, add --anyway"
            )
        why = f": {reason}" if reason else ""
        self.promote(run, f"rollback from {current} by {getpass.getuser()}{why}")
        return current, run

    def update_production_link(self) -> None:
        """Let artifacts/production be the bundle that the registry names, and check that bundle.

        Raises:
            DataError: The bundle or its serving bundle cannot be loaded or mended, or something
                else than a link is at artifacts/production.
        """
        assignments = self.assignments()
        if assignments:
            self._check_link_can_be_set()
            bundle = self._restore_for_production(self._read_run(assignments[-1].run))
            if problem := self.link_problem(bundle.name):
                self._set_link(self._link_target(bundle))
                log.warning(f"{problem}; it has been set")

    def link_problem(self, version: str) -> str | None:
        """Return why artifacts/production is not the link to a model version, None if it is."""
        link = self.root / PRODUCTION
        target = self._link_target(self.bundle_directory(version))
        if not link.is_symlink():
            found = "something else than a link" if link.exists() else "nothing"
        elif link.readlink() != target:
            found = f"a link to {link.readlink()}"
        else:
            return None
        return f"{PRODUCTION}: {found} found, a link to {target} expected by the registry"

    def bundle_directory(self, version: str) -> Path:
        """Return where the bundle of a model version is kept."""
        return self.root / MODELS / version

    def restore_bundle(self, run: NightlyRun) -> Path:
        """Return the bundle of a run in artifacts/models, as flows/nightly/bundles.py describes."""
        return restore_bundle(self.root, run)

    def _restore_for_production(self, run: NightlyRun) -> Path:
        """Return the bundle of a run; its serving bundle, if it exported one, is complete too.

        Raises:
            DataError: One of the two cannot be loaded or mended.
        """
        bundle = restore_bundle(self.root, run)
        restore_serving_bundle(self.root, run)
        return bundle

    def _link_target(self, bundle: Path) -> Path:
        return Path(MODELS.name) / bundle.name

    def _check_link_can_be_set(self) -> None:
        link = self.root / PRODUCTION
        if link.exists() and not link.is_symlink():
            raise DataError(
                f"{PRODUCTION}: it is not a link to a bundle in {MODELS}, so it cannot be replaced "
                f"at once; move it away: mv {PRODUCTION} {PRODUCTION}.moved"
            )

    def _set_link(self, target: Path) -> None:
        """Replace the link by one rename, so that a reader finds the old bundle or the new one."""
        link = self.root / PRODUCTION
        if not link.is_symlink() or link.readlink() != target:
            scratch = link.with_name(f".{PRODUCTION.name}.tmp")
            scratch.unlink(missing_ok=True)
            scratch.symlink_to(target)
            scratch.replace(link)

    def _finish_killed_step(self, current: str) -> None:
        """Set the link if a promotion or rollback was killed before that.

        Raises:
            DataError: It was, so `the model before` is not the one that the user means.
        """
        problem = self.link_problem(str(self.find(current).version))
        if problem:
            self.update_production_link()
            raise DataError(
                f"{problem}; an earlier promotion or rollback was killed. It is finished now: "
                f"{current} is in production. To go further back, repeat the rollback"
            )

    def fetch_output(self, path: str, run: NightlyRun, target: Path) -> None:
        """Copy an output of a run, as it was then, from DVC's cache or remote to target.

        Raises:
            DataError: The output is neither in the cache nor at the remote.
        """
        fetch_output(self.root, path, run.tag, target)

    # DVC's remote

    def push(self, warn: Callable[[str], None]) -> None:
        """Push the data of runs that is not at DVC's remote yet.

        If that fails, `warn` gets the reason, and the next run tries again.
        """
        numbers = self.unpushed()
        for k, number in enumerate(numbers):
            ref = f"{UNPUSHED}{number:04d}"
            try:
                push(self.root, self.git.run("rev-parse", ref))
            except Exception as error:  # the kinds of remotes have no common base class of errors
                waiting = ", ".join(map(str, numbers[k:]))
                warn(
                    f"the data of nightly runs {waiting} is not at DVC's remote; "
                    f"the next nightly run tries again: {mask_passwords(str(error))}"
                )
                return
            self.git.run("update-ref", "-d", ref)

    def unpushed(self) -> list[int]:
        """Return the runs whose data is not at DVC's remote yet; none if there is no remote."""
        if not has_remote(self.root):
            return []
        refs = self.git.run("for-each-ref", "--format=%(refname)", UNPUSHED).splitlines()
        return [int(ref.removeprefix(UNPUSHED)) for ref in refs]

    def _read_run(self, number: int) -> NightlyRun:
        (content,) = self.git.read_files([f"{run_tag(number)}:./{RECORD}"])
        if content is None:
            raise DataError(
                f"{run_tag(number)}: {RECORD} not found; {REMEDY.format(tag=run_tag(number))}"
            )
        return read_record(content, run_tag(number))


def _names_of(run: NightlyRun) -> set[str]:
    return _names_of_tag(run.tag)


def _names_of_tag(tag: str) -> set[str]:
    """Return the names by which a user may call a run or its model."""
    number = _number_of(tag)
    model = f"v{number}.0.0"
    return {model, f"v{number}", str(number), f"{MODEL_PREFIX}{model}", tag}


def _number_of(tag: str) -> int:
    return int(tag.removeprefix(RUN_TAG_PREFIX))


def _model_before(assignments: list[Assignment]) -> str:
    """Return the model that was in production before the present one."""
    current = assignments[-1].run
    others = [assignment.run for assignment in assignments if assignment.run != current]
    if not others:
        raise DataError(
            f"only v{current}.0.0 was ever in production; name a model of `clickmill nightly list`"
        )
    return f"v{others[-1]}.0.0"
