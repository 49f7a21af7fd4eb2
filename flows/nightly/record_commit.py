"""A night that has ended: its commit and tag, and its data at DVC's remote."""

from collections.abc import Callable
from pathlib import Path

from dvc.repo import Repo

from common.files import read_json
from flows.nightly.clone import LOCK, PURPOSE
from flows.nightly.git import git, identity
from flows.nightly.record import RECORD, Night

UNPUSHED = (
    "refs/clickmill/unpushed/"  # a night's number below it: its data is not at the remote yet
)


def save(root: Path, clone: Path, night: Night) -> None:
    """The record, committed in the clone with what the night changed, and tagged in root. No branch moves."""
    night.write(clone)
    who = identity(root)
    git(
        clone, "reset", "-q", "--soft", read_json(clone / PURPOSE)["commit"]
    )  # one that was killed here has its commit already
    git(
        clone,
        "add",
        "--force",
        str(RECORD),
        "params.yaml",
        *([str(LOCK)] if (clone / LOCK).exists() else []),
    )
    git(clone, *who, "commit", "-q", "--no-verify", "-m", night.headline)
    commit = git(clone, "rev-parse", "HEAD")
    git(root, "fetch", "-q", "--no-tags", str(clone.resolve()), commit)
    git(root, "update-ref", f"{UNPUSHED}{night.number:04d}", commit)
    git(
        root, *who, "tag", "-a", night.tag, "-m", night.headline, commit
    )  # from here on the night has been


def push(root: Path, warn: Callable[[str], None]) -> None:
    """Send what is not at DVC's remote yet. A remote that cannot be reached is told, and tried again by the next night."""
    late = unpushed(root)
    for k, number in enumerate(late):
        ref = f"{UNPUSHED}{number:04d}"
        try:
            with Repo(str(root)) as repo:
                repo.push(revs=[git(root, "rev-parse", ref)], workspace=False)
        except Exception as error:  # each kind of remote has its own, without a base of their own; the night has been, whatever it is
            waiting = ", ".join(map(str, late[k:]))
            warn(f"not at DVC's remote: night {waiting}; the next one tries again: {error}")
            return
        git(root, "update-ref", "-d", ref)


def unpushed(root: Path) -> list[int]:
    """Nights whose data is not at DVC's remote yet; none where there is no remote."""
    with Repo(str(root)) as repo:
        if not repo.config["core"].get("remote"):
            return []
    return [
        int(name.removeprefix(UNPUSHED))
        for name in git(root, "for-each-ref", "--format=%(refname)", UNPUSHED).splitlines()
    ]
