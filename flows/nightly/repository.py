"""The repository of nightly runs: their records, their models, and the model in production."""

import getpass
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from common.bundle_layout import MANIFEST, MODEL, version_of
from common.files import DataError, replaced
from common.layout import NIGHTLY_CLONE
from common.masking import mask_passwords
from features.collect.stage import natural_order_key
from flows.git_commands import Git
from flows.nightly.clone import DVC_LOCK, MODEL_OUTPUT, Clone, output_hashes
from flows.nightly.dvc_storage import fetch_output, has_remote, push
from flows.nightly.record import PRODUCTION, RECORD, RUN_TAG_PREFIX, NightlyRun, run_tag
from flows.nightly.registry import ASSIGNMENT_PREFIX, MODEL_PREFIX, Assignment, ModelRegistry

MODELS = Path("artifacts/models")  # bundles that are or were in production, by model version
UNPUSHED = "refs/clickmill/unpushed/"  # refs to runs whose data is not at DVC's remote yet
MIN_VERSION_DIGITS = 4  # of the beginning of a model version that names a model


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

    def runs(self) -> list[NightlyRun]:
        """Return the records of all finished runs in their order."""
        names = [f"{tag}:{RECORD}" for tag in self.git.tags(f"{RUN_TAG_PREFIX}*")]
        return [NightlyRun.model_validate_json(text) for text in self.git.read_files(names)]

    def find(self, wanted: str) -> NightlyRun:
        """Return the run that made a model.

        Args:
            wanted: v7.0.0, v7, 7, dlrm@v7.0.0, night/0007, or at least four digits of the model
                version.

        Raises:
            DataError: No run made such a model.
        """
        runs = self.runs()
        with_model = [run for run in runs if run.version]
        matches = [run for run in runs if wanted in _names_of(run)]
        if not matches and len(wanted) >= MIN_VERSION_DIGITS:
            matches = [run for run in with_model if str(run.version).startswith(wanted)]
        if not matches:
            newest = ", ".join(f"{run.model} ({run.version})" for run in with_model[-5:])
            raise DataError(
                f"no model {wanted!r} is registered; the newest are {newest or 'none yet'}"
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
        runs = self.runs()
        if until is not None:
            runs = [run for run in runs if natural_order_key(run.until) <= natural_order_key(until)]
        return runs[-1] if runs else None

    def record(self, clone: Clone, run: NightlyRun) -> None:
        """Commit the record, params.yaml and dvc.lock in the clone, and tag the commit here.

        No branch moves. When the tag is set, the run is finished.
        """
        commit = clone.commit_record(run, self.git.author())
        self.git.run("fetch", "-q", "--no-tags", str(clone.root.resolve()), commit)
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
        name = f"{revision}:{DVC_LOCK}"
        return self.git.run("show", name) + "\n" if self.git.exists(name) else ""

    def output_hashes(self, revision: str) -> dict[str, str]:
        """Return the MD5 of every output of dvc.lock at a git revision, by path."""
        return output_hashes(self.read_dvc_lock(revision))

    def model_hash(self, revision: str) -> str | None:
        """Return the MD5 of the bundle in dvc.lock at a git revision, None if there is none."""
        return self.output_hashes(revision).get(MODEL_OUTPUT)

    def uncommitted_files(self) -> list[str]:
        """Return the tracked files of the checkout with changes that are not committed."""
        return self.git.run("diff", "--name-only", "HEAD").splitlines()

    # Promotion

    def assignments(self) -> list[Assignment]:
        """Return all events that put a model into production; the last one's is there now."""
        return self.registry.assignments()

    def production_version(self) -> str | None:
        """Return the model version in production, None if no model was ever promoted."""
        return (self.root / PRODUCTION).resolve().name if self.assignments() else None

    def apply_records(self) -> None:
        """Register the models of all runs, and promote the last run's model if it passed.

        It does only what is still missing, so it finishes what a killed run left, at any point.
        """
        self.git.remove_tag_locks([RUN_TAG_PREFIX, MODEL_PREFIX, ASSIGNMENT_PREFIX])
        runs = self.runs()
        self.registry.register(runs)
        if runs and runs[-1].outcome == "promoted":
            assigned_runs = {assignment.run for assignment in self.assignments()}
            if runs[-1].number not in assigned_runs:
                self.promote(runs[-1], runs[-1].headline)
        self.update_production_link()

    def promote(self, run: NightlyRun, reason: str) -> None:
        """Put the model of a run into production: the tag first, then the link.

        Raises:
            DataError: The bundle is neither in DVC's cache nor at its remote. Nothing was changed.
        """
        self.restore_bundle(run)
        self.registry.assign(run, reason)
        self.update_production_link()

    def rollback(
        self, wanted: str | None, reason: str | None, *, anyway: bool = False
    ) -> tuple[str, NightlyRun]:
        """Put an earlier model into production.

        Args:
            wanted: The model, as `find` takes it; None means the model that was in production
                before the present one.
            reason: Recorded with the rollback.
            anyway: Accept a model that its run rejected.

        Returns:
            The name of the model that was in production, and the run whose model is there now.

        Raises:
            DataError: There is no such model, or its run rejected it and anyway is False.
        """
        assignments = self.assignments()
        if not assignments:
            raise DataError(
                "no model is in production yet; run `clickmill nightly run` to make the first"
            )
        current = f"v{assignments[-1].run}.0.0"
        if wanted is None:
            wanted = _model_before(assignments)
        run = self.find(wanted)
        if run.model == current:
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
        """Let artifacts/production be the bundle that the registry names.

        The link is replaced by one rename, so a reader finds the old bundle or the new one.
        """
        assignments = self.assignments()
        if not assignments:
            return
        run = self._read_run(assignments[-1].run)
        target = Path(MODELS.name) / self.restore_bundle(run).name
        link = self.root / PRODUCTION
        if not link.is_symlink() or link.readlink() != target:
            scratch = link.with_name(f".{PRODUCTION.name}.tmp")
            scratch.unlink(missing_ok=True)
            scratch.symlink_to(target)
            scratch.replace(link)

    def bundle_directory(self, version: str) -> Path:
        """Return where the bundle of a model version is kept."""
        return self.root / MODELS / version

    def restore_bundle(self, run: NightlyRun) -> Path:
        """Return the bundle of a run in artifacts/models; if it is not there, fetch it from DVC.

        Raises:
            DataError: The bundle is neither in DVC's cache nor at its remote.
        """
        assert run.version
        directory = self.bundle_directory(run.version)
        if not _contains_bundle(directory, run.version):
            with replaced(directory) as scratch:
                self.fetch_output(MODEL_OUTPUT, run, scratch)
                if not _contains_bundle(scratch, run.version):
                    raise DataError(
                        f"{run.tag}: {MODEL} is not model {run.version}; was the tag moved?"
                    )
        return directory

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
        record = self.git.run("show", f"{run_tag(number)}:{RECORD}")
        return NightlyRun.model_validate_json(record)


def _names_of(run: NightlyRun) -> set[str]:
    """Return the names by which a user may call a run or its model."""
    model = f"v{run.number}.0.0"
    return {model, f"v{run.number}", str(run.number), f"{MODEL_PREFIX}{model}", run.tag}


def _model_before(assignments: list[Assignment]) -> str:
    """Return the model that was in production before the present one."""
    current = assignments[-1].run
    others = [assignment.run for assignment in assignments if assignment.run != current]
    if not others:
        raise DataError(
            f"only v{current}.0.0 was ever in production; name a model of `clickmill nightly list`"
        )
    return f"v{others[-1]}.0.0"


def _contains_bundle(directory: Path, version: str) -> bool:
    return (directory / MANIFEST).is_file() and version_of(directory) == version
