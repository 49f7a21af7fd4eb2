"""Files that the user names: where they are, and which outputs may be written.

An output replaces a regular file only, and neither an input nor a file of a bundle. A pipe or a
device is written to. A link is followed: the file that it names is replaced, and the link stays.
"""

import glob
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import IO, Literal

from common.bundle_layout import MANIFEST
from common.files import DataError, replaced
from common.layout import ARTIFACTS, PARAMS

# The name of standard input as an input, and of standard output as an output.
STDIO = Path("-")
STDIN, STDOUT = 0, 1
MAX_LINKS = 40  # as the kernel follows in a path
VARIABLE = re.compile(r"\$(\w+|\{\w+\})")


def expand_home(path: Path) -> Path:
    """Replace a `~` or `~USER` at the beginning of a path by the home folder.

    The shell does this only at the beginning of a word, and not in `--output=~/scores.csv` or in
    params.yaml. Where a file or folder called `~` exists, that one is meant.
    """
    first = path.parts[0] if path.parts else ""
    if not first.startswith("~") or os.path.lexists(first):
        return path
    return Path(os.path.expanduser(path))  # noqa: PTH111  Path.expanduser raises without a home


def variable_hint(path: Path) -> str:
    """Return a sentence for the error that a path does not exist, if it contains `$NAME`."""
    found = VARIABLE.search(str(path))
    return f" (variables such as {found[0]} are not expanded; write the path)" if found else ""


def path_as_text(path: PurePath) -> str:
    """Return a path as text, with bytes that are not UTF-8 escaped: logs and tables are UTF-8."""
    return os.fsencode(path).decode(errors="backslashreplace")


@dataclass(frozen=True)
class FoundFiles:
    """The files that a path names.

    Attributes:
        folder: The folder that their names are relative to.
        names: Their names, with `/` where they are in folders below it.
        kind: Whether the path is that of a file or a folder, or a pattern.
        not_files: The names of what is neither a file nor a folder: pipes, links to nothing.
    """

    folder: Path
    names: list[str]
    kind: Literal["file", "folder", "pattern"]
    not_files: list[str] = field(default_factory=list)

    @property
    def paths(self) -> list[Path]:
        """The paths of the files."""
        return [self.folder / name for name in self.names]


def find_files(path: Path) -> FoundFiles:
    """Find the file at a path, all files in the folder at it, or those that match the pattern.

    A path that exists is never a pattern, and neither is the part of a pattern that exists as a
    folder: `[x]/day_*.tsv` are the files of the folder `[x]` if there is one. Links to files and
    folders are followed.
    """
    if path.is_file():
        return FoundFiles(path.parent, [path.name], "file")
    if path.is_dir():
        found = FoundFiles(path, [], "folder")
        _add_files(found, path, "", ())
        return found
    folder = Path(path.anchor)
    if os.path.lexists(path) or "\0" in str(path):
        return FoundFiles(folder, [], "pattern")
    parts = list(path.parts[1:] if path.anchor else path.parts)
    while parts and (folder / parts[0]).is_dir():
        folder /= parts.pop(0)
    if not parts:
        return FoundFiles(folder, [], "pattern")
    names = glob.glob(str(Path(*parts)), root_dir=folder, recursive=True)  # noqa: PTH207
    names = [name for name in dict.fromkeys(names) if (folder / name).is_file()]
    return FoundFiles(folder, names, "pattern")


def _add_files(found: FoundFiles, folder: Path, prefix: str, above: tuple[str, ...]) -> None:
    """Add the files of a folder and of the folders in it, but of none that it lies in itself."""
    place = os.path.realpath(folder)
    if place in above:
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        name = f"{prefix}{entry.name}"
        if entry.is_dir():
            _add_files(found, folder / entry.name, f"{name}/", (*above, place))
        else:
            (found.names if entry.is_file() else found.not_files).append(name)


@dataclass(frozen=True)
class UserOutput:
    """An output that the user named and that may be written.

    Attributes:
        name: The path as it is shown to the user.
        target: The regular file that is made or replaced; None if the output is written to: a pipe,
            a device, or a file that this process was given open.
        stream: The path or the descriptor that is written to, if `target` is None.
    """

    name: str
    target: Path | None
    stream: Path | int = STDOUT

    @property
    def is_stdout(self) -> bool:
        """Whether it is standard output, where nothing else may be printed then."""
        return self.target is None and self.stream == STDOUT

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Open the output. A regular file is complete when the block ends, or as it was before."""
        if self.target:
            with replaced(self.target) as scratch, scratch.open("wb") as file:
                yield file
        elif isinstance(self.stream, int):
            with os.fdopen(os.dup(self.stream), "wb") as file:
                yield file
        else:
            with self.stream.open("wb") as file:
                yield file


def user_output(
    path: Path, option: str, inputs: Iterable[Path] = (), *, makes_folder: bool = False
) -> UserOutput:
    """Check an output that the user named, before any work is done.

    Args:
        path: The output; `-` is standard output.
        option: The option that names it, for error messages.
        inputs: The files that are read.
        makes_folder: Whether the folder of a new file is made where it is missing.

    Raises:
        DataError: It is not a file in an existing folder, a pipe or a device; or it is an input, in
            a bundle or in the artifacts of a project.
    """
    shown = f"{option} {path}"
    descriptor = STDOUT if path == STDIO else open_descriptor(path := expand_home(path))
    try:
        status = path.stat() if descriptor is None else os.fstat(descriptor)
    except FileNotFoundError:
        target = Path(os.path.realpath(path))
        if not target.parent.is_dir() and not makes_folder:
            raise DataError(
                f"{shown}: a file in an existing folder expected; there is no folder "
                f"{target.parent}{variable_hint(path)}"
            ) from None
        refuse_kept_folders(path, shown)
        return UserOutput(path_as_text(path), target)
    except OSError as error:
        raise DataError(f"{shown}: {error.strerror}; name another file") from None
    is_file = stat.S_ISREG(status.st_mode)
    if is_file or stat.S_ISFIFO(status.st_mode):
        for one in inputs:
            if one.exists() and os.path.samestat(one.stat(), status):
                raise DataError(f"{shown}: this is the input {one}; name another file")
    elif not stat.S_ISCHR(status.st_mode):
        kind = "folder" if stat.S_ISDIR(status.st_mode) else "block device or socket"
        raise DataError(f"{shown}: a file in an existing folder expected, found a {kind}")
    if descriptor is not None:
        return UserOutput(
            "standard output" if path == STDIO else path_as_text(path), None, descriptor
        )
    if not is_file:
        return UserOutput(path_as_text(path), None, path)
    refuse_kept_folders(path, shown)
    return UserOutput(path_as_text(path), Path(os.path.realpath(path)))


def open_descriptor(path: Path) -> int | None:
    """Return the number of this process's open file that a path names, such as /dev/stdout.

    Such a file is written to where it is: it belongs to whoever opened it, and may be a pipe or
    a file that the shell appends to.
    """
    for place in _places(path):
        in_folder = os.path.realpath(place.parent) == f"/proc/{os.getpid()}/fd"
        if in_folder and place.name.isdecimal() and place.exists():
            return int(place.name)
    return None


def find_same_file(paths: Sequence[Path]) -> tuple[Path, Path] | None:
    """Return two paths of a list that lead to the same place; None if there are none."""
    seen: dict[str, Path] = {}
    for path in paths:
        place = os.path.realpath(path)
        if place in seen:
            return seen[place], path
        seen[place] = path
    return None


def _places(path: Path) -> Iterator[Path]:
    """Yield a path and, if it is a link, the paths that one link after the other leads to."""
    for _ in range(MAX_LINKS):
        yield path
        if not path.is_symlink():
            return
        path = path.parent / path.readlink()


def refuse_kept_folders(path: Path, shown: str) -> None:
    """Refuse a path in a bundle or in a project's artifacts, or a link that leads into one.

    Each byte of a bundle counts, and a stage replaces its whole folder.
    """
    for place in _places(path):
        for folder in (place.parent.resolve(), *place.parent.resolve().parents):
            if (folder / MANIFEST).exists():
                raise DataError(f"{shown}: this is inside the model {folder}; name another file")
            if folder.name == ARTIFACTS.name and (folder.parent / PARAMS).exists():
                raise DataError(
                    f"{shown}: this is inside {folder}, where the stages keep their outputs; name "
                    f"a file elsewhere, such as runs/{path.name}"
                )
