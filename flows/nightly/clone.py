"""The clone in which a nightly run works.

It runs what is committed, and leaves the users' checkout alone.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, Field
from ruamel.yaml import YAML

from common.bundle_layout import MODEL
from common.config.loading import check_json
from common.config.params import Params, load_params
from common.files import DataError, read_json, remove, replaced, write_json
from common.layout import PARAMS
from common.printable import join_lines
from flows.git_commands import Author, Git
from flows.nightly.dvc_storage import check_out, drop_damaged, share_cache
from flows.nightly.record import PRODUCTION, RECORD, NightlyRun

DVC_LOCK, DVC_YAML = Path("dvc.lock"), Path("dvc.yaml")
MODEL_OUTPUT = MODEL.as_posix()  # the path of the bundle in dvc.lock
PURPOSE = Path(".git/clickmill.json")  # what the clone was made for


class Clone:
    """A clone of the repository with DVC's cache and remotes shared.

    Attributes:
        top: The directory of the clone.
        root: The project's directory in it: `top`, or a folder where the repository has more.
        git: Runs git in `root`.
    """

    def __init__(self, top: Path, prefix: Path = Path()) -> None:
        self.top, self.root = top, top / prefix
        self.git = Git(self.root)

    @classmethod
    def make(
        cls, source: Git, ref: str, base: str | None, purpose: Mapping[str, Any], top: Path
    ) -> Self:
        """Clone a repository, or take the clone that a killed run left there for the same purpose.

        Args:
            source: The repository.
            ref: The git revision to check out.
            base: The git revision whose artifacts the clone begins with; None means those of ref.
            purpose: What the clone is made for, as JSON values.
            top: Where the clone is made. A clone for another purpose is removed first.
        """
        clone = cls(top, source.prefix())
        commit = source.run("rev-parse", f"{ref}^{{commit}}")
        purpose = {**purpose, "commit": commit, "base": base}
        if _read_purpose(top) == purpose:
            return clone
        clone.remove()
        top.parent.mkdir(parents=True, exist_ok=True)
        source.run(
            "clone", "-q", "--no-tags", "--no-checkout", str(source.top()), str(top.resolve())
        )
        Git(top).run("checkout", "-q", "--detach", commit)
        share_cache(source.root, clone.root)
        lock = clone.root / DVC_LOCK
        if base:
            text = source.run("show", f"{base}:./{DVC_LOCK}") + "\n"
            lock.write_text(text, encoding="utf-8")
        if lock.exists():
            check_out(clone.root)
        write_json(top / PURPOSE, purpose)  # last: a clone without it is made from scratch
        return clone

    def remove(self) -> None:
        """Remove the clone, if it exists."""
        remove(self.top)

    def load_params(self) -> Params:
        """Load the clone's params.yaml."""
        return load_params(self.root / PARAMS)

    def set_param(self, section: str, name: str, value: object) -> None:
        """Change one value of the clone's params.yaml."""
        set_param(self.root, section, name, value)

    def read_dvc_lock(self) -> str:
        """Return the text of dvc.lock, empty where no stage has run."""
        path = self.root / DVC_LOCK
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def model_hash(self) -> str | None:
        """Return the MD5 of the bundle in dvc.lock, None if there is none."""
        return output_hashes(self.read_dvc_lock(), str(self.root)).get(MODEL_OUTPUT)

    def drop_damaged(self) -> list[str]:
        """Delete damaged files of the outputs from DVC's cache, and from the clone.

        Every cached file of dvc.lock is read: about 2 s per GB. The stages that make a deleted file
        are stale then.

        Returns:
            The files that were damaged, by their path in the clone.
        """
        outputs = output_hashes(self.read_dvc_lock(), str(self.root))
        damaged = list(drop_damaged(self.root, outputs))
        for path in damaged:
            remove(self.root / path)  # a link to the damaged file
        return damaged

    def link_champion(self, bundle: Path | None) -> None:
        """Let artifacts/production in the clone be the champion's bundle, or nothing."""
        link = self.root / PRODUCTION
        link.unlink(missing_ok=True)
        if bundle:
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(bundle.resolve())

    def commit_record(self, run: NightlyRun, author: Author) -> str:
        """Commit the record with the run's params.yaml and dvc.lock, and return the commit's id."""
        run.write(self.root)
        # A run that was killed here has left a commit already; this one replaces it.
        self.git.run("reset", "-q", "--soft", read_json(self.top / PURPOSE)["commit"])
        paths = [RECORD, PARAMS]
        if (self.root / DVC_LOCK).exists():
            paths.append(DVC_LOCK)
        self.git.run("add", "--force", *map(str, paths))
        self.git.commit(run.headline, author=author)
        return self.git.run("rev-parse", "HEAD")


def _read_purpose(root: Path) -> Any:
    """Return what a clone was made for, None if there is no clone or nobody can tell."""
    try:
        return read_json(root / PURPOSE)
    except DataError:
        return None


def set_param(root: Path, section: str, name: str, value: object) -> None:
    """Change one value of params.yaml in root; comments and everything else stay as they are."""
    editor, path = YAML(), root / PARAMS
    editor.width = 1000
    values = editor.load(path.read_text(encoding="utf-8"))
    values[section][name] = value
    with replaced(path) as scratch, scratch.open("w", encoding="utf-8") as file:
        editor.dump(values, file)


class _Output(BaseModel):
    path: str
    md5: str = Field(pattern=r"^[0-9a-f]{32}(\.dir)?$")


class _Stage(BaseModel):
    outs: list[_Output] = []


class _DvcLock(BaseModel):
    stages: dict[str, _Stage] = {}


def output_hashes(dvc_lock: str, revision: str) -> dict[str, str]:
    """Return the MD5 of every output in the text of a dvc.lock, by path.

    Args:
        dvc_lock: The text.
        revision: Where it is from, for the messages.

    Raises:
        DataError: The text is not that of a dvc.lock.
    """
    name, remedy = Path(f"{revision}:{DVC_LOCK}"), "restore it from git, or from another clone"
    try:
        parsed = YAML(typ="safe", pure=True).load(dvc_lock)
    except Exception as error:  # ruamel also raises what Python's int() and date() raise
        raise DataError(f"{name} is not YAML ({join_lines(str(error))}); {remedy}") from None
    lock = check_json(_DvcLock, {} if parsed is None else parsed, name, remedy)
    return {output.path: output.md5 for stage in lock.stages.values() for output in stage.outs}
