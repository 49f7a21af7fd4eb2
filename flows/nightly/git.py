"""git, as far as nights need it."""

import subprocess
from pathlib import Path

OURS = ("clickmill", "clickmill@localhost")


class GitError(RuntimeError):
    """git refused. The message is the command and what git said."""


def git(root: Path, *arguments: str) -> str:
    """What git printed, without the last line end. Raises GitError."""
    done = subprocess.run(
        ["git", *arguments], cwd=root, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise GitError(f"git {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.rstrip("\n")


def contents(root: Path, names: list[str]) -> list[bytes]:
    """Of files, each COMMIT:PATH, in one go. Raises GitError where one is not there."""
    done = subprocess.run(
        ["git", "cat-file", "--batch"],
        cwd=root,
        input="\n".join(names).encode(),
        capture_output=True,
        check=True,
    )
    found, rest = [], done.stdout
    for name in names:
        header, _, rest = rest.partition(b"\n")
        if not header.split()[-1].isdigit():
            raise GitError(f"git cat-file {name}: {header.decode()}")
        size = int(header.split()[-1])
        found.append(rest[:size])
        rest = rest[size + 1 :]
    return found


def has(root: Path, name: str) -> bool:
    """Whether there is such a commit, or such a file in one (COMMIT:PATH)."""
    return not subprocess.run(
        ["git", "cat-file", "-e", name], cwd=root, capture_output=True, check=False
    ).returncode


def author(root: Path) -> tuple[str, str]:
    """Name and address for commits and tags: the user's, or ours where git knows none, as in a container."""
    asked = subprocess.run(
        ["git", "var", "GIT_COMMITTER_IDENT"], cwd=root, capture_output=True, text=True, check=False
    )
    name, _, rest = asked.stdout.partition(" <")
    return (name, rest.partition(">")[0]) if asked.returncode == 0 else OURS


def identity(root: Path) -> tuple[str, ...]:
    """Arguments that give git the author."""
    name, address = author(root)
    return "-c", f"user.name={name}", "-c", f"user.email={address}"


def tags(root: Path, pattern: str) -> list[str]:
    """Names that match, in natural order."""
    return git(root, "tag", "--list", pattern, "--sort=version:refname").splitlines()


def unlock_tags(root: Path, *prefixes: str) -> None:
    """Remove the locks that a killed process left on tags of these names; nobody else writes them while the night has its lock."""
    folder = (
        Path(git(root, "rev-parse", "--path-format=absolute", "--git-common-dir")) / "refs" / "tags"
    )
    for prefix in prefixes:
        for path in folder.glob(f"{prefix}*.lock"):
            path.unlink()
