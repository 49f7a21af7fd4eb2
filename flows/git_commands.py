"""Runs the git commands that flows need."""

import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from common.full_disk import full_disk_at
from common.masking import mask_passwords
from common.printable import join_lines

# The settings of a user's git that would stop a commit or a tag of ours, or change its bytes. We
# commit records that a machine made, at night, so nobody is there to sign or to mend a hook's
# complaint.
SETTINGS = {
    "commit.gpgSign": "false",
    "tag.gpgSign": "false",
    "tag.forceSignAnnotated": "false",
    "core.hooksPath": os.devnull,
    "core.autocrlf": "false",  # the clone has the bytes of the commit
    "core.safecrlf": "false",
    "core.fsmonitor": "false",  # a program of the user's
    "protocol.file.allow": "always",  # the clone is made from a path
    "i18n.commitEncoding": "UTF-8",
    "i18n.logOutputEncoding": "UTF-8",
    # Tidying up in the background would write into a clone while it is removed.
    "gc.auto": "0",
    "maintenance.auto": "false",
}
# The environment variables by which git tells a hook, and everything that the hook starts, which
# repository and which index it works on. The dates are those of a commit that a rebase repeats.
OF_A_CALLING_GIT = (
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_AUTHOR_DATE",
    "GIT_COMMITTER_DATE",
    "GIT_COMMON_DIR",
    "GIT_DIR",
    "GIT_EXTERNAL_DIFF",
    "GIT_INDEX_FILE",
    "GIT_NAMESPACE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_QUARANTINE_PATH",
    "GIT_WORK_TREE",
)
ENVIRONMENT = {
    "GIT_OPTIONAL_LOCKS": "0",  # `git diff` would lock the index to refresh it
    "LC_ALL": "C",  # we look for words in what git prints
}
# A line of a message is not a comment, whatever the user's core.commentChar is.
KEEP_COMMENTS = "--cleanup=whitespace"
OUR_REFS = "refs/clickmill/"
CHECK_REF = f"{OUR_REFS}check"
WRITE_FAILURE = re.compile("writ|creat|updat|append|lock")  # words of what git prints
DUBIOUS_OWNERSHIP = re.compile("dubious ownership in repository at '(.+)'")


class GitError(RuntimeError):
    """git refused a command. The message is one line: the command, what git printed, the remedy.

    Passwords in URLs are masked.
    """

    def __init__(self, message: str) -> None:
        super().__init__(mask_passwords(message))


class Author(NamedTuple):
    """Who signs commits and tags."""

    name: str
    email: str


FALLBACK_AUTHOR = Author("clickmill", "clickmill@localhost")


def forget_calling_git() -> None:
    """Remove from this process's environment what a calling git command has put there.

    Otherwise git and DVC would work on the repository of that command, for example of the hook
    that starts `clickmill run`.
    """
    for name in OF_A_CALLING_GIT:
        os.environ.pop(name, None)


class Git:
    """Runs git in one repository, independent of the user's settings where they could end a run.

    Attributes:
        root: The project's directory: the repository's, or a folder in it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, *arguments: str) -> str:
        """Run a git command and return what it printed, without the last line end.

        Raises:
            GitError: git refused the command, or there is no git.
        """
        result = self._start(arguments)
        if result.returncode:
            raise GitError(self._describe(arguments, _text(result.stderr or result.stdout)))
        return _text(result.stdout).removesuffix("\n")

    def exists(self, name: str) -> bool:
        """Return whether there is such a commit, or such a file in a commit (COMMIT:./PATH)."""
        return self._start(["cat-file", "-e", name]).returncode == 0

    def read_files(self, names: Sequence[str]) -> list[bytes | None]:
        """Return the contents of files, each named COMMIT:./PATH. One process reads them all.

        A file that does not exist is None.

        Raises:
            GitError: git cannot read its own files.
        """
        command = ["cat-file", "--batch"]
        result = self._start(command, "\n".join(names).encode())
        if result.returncode:
            raise GitError(self._describe(command, _text(result.stderr)))
        contents: list[bytes | None] = []
        rest = result.stdout
        for _ in names:
            header, _, rest = rest.partition(b"\n")
            size = header.split()[-1]
            if size.isdigit():
                contents.append(rest[: int(size)])
                rest = rest[int(size) + 1 :]
            else:
                contents.append(None)
        return contents

    def tags(self, pattern: str) -> list[str]:
        """Return the tags that match a pattern, in natural order."""
        # `git tag --list` follows the user's column.ui and tag.sort.
        options = ("--sort=version:refname", "--format=%(refname:lstrip=2)")
        return self.run("for-each-ref", *options, f"refs/tags/{pattern}").splitlines()

    def author(self) -> Author:
        """Return the user's name and address, or ours where git knows none, as in a container."""
        result = self._start(["var", "GIT_COMMITTER_IDENT"])
        if result.returncode:
            return FALLBACK_AUTHOR
        name, _, rest = _text(result.stdout).partition(" <")
        return Author(name, rest.partition(">")[0])

    def setting_of_user(self, name: str) -> str | None:
        """Return the value of a setting in the user's files, None if it has none."""
        result = self._start(["config", "--get-all", name])
        values = _text(result.stdout).splitlines()
        if name in SETTINGS:
            values.pop()  # ours, which comes last
        return values[-1] if values else None

    def prefix(self) -> Path:
        """Return the path of root in the repository: `.`, or the folder of a larger one."""
        return Path(self.run("rev-parse", "--show-prefix"))

    def top(self) -> Path:
        """Return the directory of the whole repository, of which root may be a folder."""
        return Path(self.run("rev-parse", "--show-toplevel"))

    def operation_in_progress(self) -> str | None:
        """Return which operation of the user's is not finished, such as "rebase", None if none."""
        for name, operation in (
            ("rebase-merge", "rebase"),
            ("rebase-apply", "rebase"),
            ("MERGE_HEAD", "merge"),
            ("CHERRY_PICK_HEAD", "cherry-pick"),
            ("REVERT_HEAD", "revert"),
            ("BISECT_LOG", "bisect"),
        ):
            if (self.root / self.run("rev-parse", "--git-path", name)).exists():
                return operation
        return None

    def check_writable(self) -> None:
        """Write an object and a ref, and delete the ref, as a commit and a tag will do.

        Raises:
            GitError: That is not possible: another user's repository, a full disk, a lock file.
        """
        self.remove_ref_locks([CHECK_REF])
        commit = self.run("rev-parse", "HEAD")
        self._run_as(self.author(), "commit-tree", f"{commit}^{{tree}}", "-m", "check")
        self.run("update-ref", CHECK_REF, commit)
        self.run("update-ref", "-d", CHECK_REF)

    def commit(self, message: str, *options: str, author: Author | None = None) -> None:
        """Commit what is staged.

        Args:
            message: The commit message.
            options: More options of `git commit`.
            author: Who signs; None means `author()` of this repository.
        """
        words = ("commit", "-q", KEEP_COMMENTS, *options, "-m", message)
        self._run_as(author or self.author(), *words)

    def tag(self, name: str, message: str, commit: str) -> None:
        """Set an annotated tag on a commit."""
        self._run_as(self.author(), "tag", "-a", KEEP_COMMENTS, name, "-m", message, commit)

    def remove_ref_locks(self, prefixes: Iterable[str]) -> None:
        """Remove the lock files that a killed process left beside refs with these prefixes.

        The caller holds the locks of flows/locks.py, so no other process writes these refs now.
        """
        common = Path(self.run("rev-parse", "--path-format=absolute", "--git-common-dir"))
        for prefix in prefixes:
            folder, _, start = prefix.rpartition("/")
            for path in (common / folder).glob("*.lock"):
                if path.name.startswith(start):
                    path.unlink()

    def _run_as(self, author: Author, *arguments: str) -> None:
        self.run("-c", f"user.name={author.name}", "-c", f"user.email={author.email}", *arguments)

    def _start(
        self, arguments: Sequence[str], text: bytes = b""
    ) -> "subprocess.CompletedProcess[bytes]":
        settings = [word for key, value in SETTINGS.items() for word in ("-c", f"{key}={value}")]
        try:
            return subprocess.run(
                ["git", *settings, *arguments],
                cwd=self.root,
                env={**os.environ, **ENVIRONMENT},
                input=text,
                capture_output=True,
                check=False,
            )
        except FileNotFoundError as error:
            if error.filename != "git":
                raise
            raise GitError(
                "the program git is not found on PATH; install git, or correct PATH"
            ) from None

    def _describe(self, arguments: Sequence[str], printed: str) -> str:
        """Return one line about a command that git refused."""
        folder = self.root.resolve()
        if "not a git repository" in printed:
            return (
                f"{folder} is not in a git repository; run `git init`, `git add -A` and "
                "`git commit -m all` there"
            )
        if owned_by_other := DUBIOUS_OWNERSHIP.search(printed):
            return (
                f"git does not work in {owned_by_other[1]}, which belongs to another user; chown "
                f"it, or run `git config --global --add safe.directory {owned_by_other[1]}`"
            )
        line = join_lines(f"git {' '.join(arguments)}: {printed}")
        common = self._start(["rev-parse", "--path-format=absolute", "--git-common-dir"])
        if WRITE_FAILURE.search(printed) and not common.returncode:
            # git names the file that it cannot write, and not always the reason
            full = full_disk_at(Path(_text(common.stdout).removesuffix("\n")) / "objects")
            if full and full.reason not in line:
                return f"{line}; {full.reason}"
        return line


def _text(output: bytes) -> str:
    """Decode git's output; a byte that is not UTF-8 stays what it is in a path."""
    return output.decode("utf-8", "surrogateescape")
