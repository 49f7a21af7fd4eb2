"""A night's own clone of the repository, with DVC's cache shared: what is committed is run, and the checkout of its users is left alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dvc.repo import Repo
from ruamel.yaml import YAML

from common.files import read_json, remove, replaced, write_json
from flows.nightly.git import git

CLONE = Path("runs/night")  # always here: DVC knows by path which files it need not hash again
PURPOSE = Path(".git/clickmill.json")  # what the clone was made for
LOCK = Path("dvc.lock")


def make_clone(
    root: Path, ref: str, base: str | None, purpose: Mapping[str, Any], place: Path = CLONE
) -> Path:
    """A clone of root at ref with the artifacts of the commit `base`, DVC's cache and remotes shared.

    One that a killed night left for the same purpose is gone on with as it is.
    """
    clone = root / place
    purpose = {**purpose, "commit": git(root, "rev-parse", f"{ref}^{{commit}}"), "base": base}
    if (clone / PURPOSE).exists() and read_json(clone / PURPOSE) == purpose:
        return clone
    remove(clone)
    clone.parent.mkdir(parents=True, exist_ok=True)
    git(root, "clone", "-q", "--no-tags", "--no-checkout", str(root.resolve()), str(clone))
    git(clone, "checkout", "-q", "--detach", purpose["commit"])
    share_cache(root, clone)
    if base:
        (clone / LOCK).write_text(git(root, "show", f"{base}:{LOCK}") + "\n", encoding="utf-8")
    if (clone / LOCK).exists():
        with Repo(str(clone)) as repo:
            repo.checkout(force=True, allow_missing=True)  # what is missing is made again
    write_json(clone / PURPOSE, purpose)  # last: without it the clone is begun anew
    return clone


def share_cache(root: Path, clone: Path) -> None:
    """Root's cache, by links, which keep files' times, by which DVC and collect know them; and root's remotes with their credentials."""
    with Repo(str(root)) as repo:
        cache = {"dir": repo.cache.local_cache_dir, "type": ["reflink", "hardlink", "copy"]}
        remotes, default = dict(repo.config["remote"]), repo.config["core"].get("remote")
    with Repo(str(clone)) as repo, repo.config.edit("local") as local:
        local["cache"], local["remote"] = cache, remotes
        if default:
            local["core"] = {"remote": default}
    (clone / ".dvc/config.local").chmod(0o600)


def set_param(clone: Path, section: str, name: str, value: object) -> None:
    """Change one value of params.yaml, comments and all else as they are."""
    editor, path = YAML(), clone / "params.yaml"
    editor.width = 1000
    values = editor.load(path.read_text(encoding="utf-8"))
    values[section][name] = value
    with replaced(path) as scratch, scratch.open("w", encoding="utf-8") as file:
        editor.dump(values, file)


def outputs(lock: str) -> dict[str, str]:
    """path -> MD5 of all outputs in the text of a dvc.lock, none in no text."""
    stages: dict[str, Any] = (YAML(typ="safe", pure=True).load(lock) or {}).get("stages", {})
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", [])}
