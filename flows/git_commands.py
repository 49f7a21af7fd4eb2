"""Runs the git commands that flows need."""

import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from common.masking import mask_passwords


class GitError(RuntimeError):
    """git refused a command. The message is the command and what git printed, without passwords."""

    def __init__(self, message: str) -> None:
        super().__init__(mask_passwords(message))


class Author(NamedTuple):
    """Who signs commits and tags."""

    name: str
    email: str


FALLBACK_AUTHOR = Author("clickmill", "clickmill@localhost")


class Git:
    """Runs git in one repository."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, *arguments: str) -> str:
        """Run a git command and return what it printed, without the last line end.

        Raises:
            GitError: git refused the command.
        """
        result = subprocess.run(
            ["git", *arguments], cwd=self.root, capture_output=True, text=True, check=False
        )
        if result.returncode:
            message = result.stderr.strip() or result.stdout.strip()
            raise GitError(f"git {' '.join(arguments)}: {message}")
        return result.stdout.rstrip("\n")

    def exists(self, name: str) -> bool:
        """Return whether there is such a commit, or such a file in a commit (COMMIT:PATH)."""
        result = subprocess.run(
            ["git", "cat-file", "-e", name], cwd=self.root, capture_output=True, check=False
        )
        return result.returncode == 0

    def read_files(self, names: Sequence[str]) -> list[bytes]:
        """Return the contents of files, each named COMMIT:PATH. One process reads them all.

        Raises:
            GitError: One of the files does not exist.
        """
        result = subprocess.run(
            ["git", "cat-file", "--batch"],
            cwd=self.root,
            input="\n".join(names).encode(),
            capture_output=True,
            check=True,
        )
        contents, rest = [], result.stdout
        for name in names:
            header, _, rest = rest.partition(b"\n")
            size = header.split()[-1]
            if not size.isdigit():
                raise GitError(f"git cat-file {name}: {header.decode()}")
            contents.append(rest[: int(size)])
            rest = rest[int(size) + 1 :]
        return contents

    def tags(self, pattern: str) -> list[str]:
        """Return the tags that match a pattern, in natural order."""
        return self.run("tag", "--list", pattern, "--sort=version:refname").splitlines()

    def author(self) -> Author:
        """Return the user's name and address, or ours where git knows none, as in a container."""
        result = subprocess.run(
            ["git", "var", "GIT_COMMITTER_IDENT"],
            cwd=self.root,
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            return FALLBACK_AUTHOR
        name, _, rest = result.stdout.partition(" <")
        return Author(name, rest.partition(">")[0])

    def commit(self, message: str, *options: str, author: Author | None = None) -> None:
        """Commit what is staged.

        Args:
            message: The commit message.
            options: More options of `git commit`.
            author: Who signs; None means `author()` of this repository.
        """
        self._run_as(author or self.author(), "commit", "-q", *options, "-m", message)

    def tag(self, name: str, message: str, commit: str) -> None:
        """Set an annotated tag on a commit."""
        self._run_as(self.author(), "tag", "-a", name, "-m", message, commit)

    def remove_tag_locks(self, prefixes: Iterable[str]) -> None:
        """Remove the lock files that a killed process left beside tags with these prefixes.

        The caller holds the locks of flows/locks.py, so no other process writes these tags now.
        """
        common = self.run("rev-parse", "--path-format=absolute", "--git-common-dir")
        directory = Path(common) / "refs" / "tags"
        for prefix in prefixes:
            for path in directory.glob(f"{prefix}*.lock"):
                path.unlink()

    def _run_as(self, author: Author, *arguments: str) -> None:
        self.run("-c", f"user.name={author.name}", "-c", f"user.email={author.email}", *arguments)
