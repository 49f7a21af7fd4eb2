"""The clone in which a nightly run works.

It runs what is committed, and leaves the users' checkout alone.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from ruamel.yaml import YAML

from common.bundle_layout import MODEL
from common.config.params import Params, load_params
from common.files import read_json, remove, replaced, write_json
from flows.git_commands import Author, Git
from flows.nightly.dvc_storage import check_out, share_cache
from flows.nightly.record import PRODUCTION, RECORD, NightlyRun

DVC_LOCK, DVC_YAML = Path("dvc.lock"), Path("dvc.yaml")
PARAMS = Path("params.yaml")
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
        if (top / PURPOSE).exists() and read_json(top / PURPOSE) == purpose:
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
        return output_hashes(self.read_dvc_lock()).get(MODEL_OUTPUT)

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


def set_param(root: Path, section: str, name: str, value: object) -> None:
    """Change one value of params.yaml in root; comments and everything else stay as they are."""
    editor, path = YAML(), root / PARAMS
    editor.width = 1000
    values = editor.load(path.read_text(encoding="utf-8"))
    values[section][name] = value
    with replaced(path) as scratch, scratch.open("w", encoding="utf-8") as file:
        editor.dump(values, file)


def output_hashes(dvc_lock: str) -> dict[str, str]:
    """Return the MD5 of every output in the text of a dvc.lock, by path."""
    parsed: dict[str, Any] = YAML(typ="safe", pure=True).load(dvc_lock) or {}
    return {
        output["path"]: output["md5"]
        for stage in parsed.get("stages", {}).values()
        for output in stage.get("outs", [])
    }
