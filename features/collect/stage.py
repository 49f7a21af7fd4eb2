"""Bring the log into artifacts/raw/: the built-in sample, or copies of the user's files, with a manifest of what they are."""

import glob
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from common.config.params import Data, Params
from common.files import (
    DataError,
    copy_with_sha256,
    read_json,
    remove,
    replaced,
    sha256_file,
    write_json,
)
from common.hashed_files import find_mismatch
from common.logs import get_logger
from common.progress import Progress
from features.sample.generate import write_sample
from features.schema.schema import SCHEMAS, load_schema

log = get_logger("collect")

RAW = Path("artifacts/raw")
BUILT_IN = "sample"
SAMPLE_LOG = "sample.tsv"
SUFFIXES = (
    "",
    ".tsv",
    ".txt",
    ".csv",
    ".jsonl",
    ".json",
    ".parquet",
    ".gz",
)  # of the logs in a folder; the Terabyte days have none
SOURCE_HOME = "CLICKMILL_SOURCE_HOME"  # where a relative data.source is looked for; not given: in the current folder
RESERVED = (
    "manifest.json",
    "bad_rows",
)  # what stands beside the logs, and beside their shards, is called that


@dataclass(frozen=True)
class Entry:
    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What stands in artifacts/raw/: the log's files in time order; recipe says how the sample was made (None for a user's log)."""

    schema: str
    files: list[Entry]
    recipe: dict[str, Any] | None

    @property
    def num_bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    @classmethod
    def read(cls, raw: Path) -> Self:
        value = read_json(raw / "manifest.json")
        return cls(value["schema"], [Entry(**file) for file in value["files"]], value["recipe"])

    def write(self, raw: Path) -> None:
        write_json(raw / "manifest.json", asdict(self))


def collect(params: Params, root: Path) -> None:
    """Make artifacts/raw/ hold data.source, copying only what is new or changed.

    Raises DataError when the source is missing, empty or names two files alike.
    """
    raw = root / RAW
    old = _old_manifest(raw)
    if not source_changed(params, root):
        log.info(f"{len(old.files) if old else 0} files, unchanged")
        return
    raw.mkdir(parents=True, exist_ok=True)
    (raw / "manifest.json").unlink(
        missing_ok=True
    )  # a killed run must not leave a manifest beside other files
    if params.data.source == BUILT_IN:
        manifest = _make_sample(params, root, raw)
    else:
        known = {file.name: file for file in old.files} if old else {}
        files = [
            _copy(source, raw, known.get(source.name)) for source in source_files(params.data, root)
        ]
        manifest = Manifest(params.data.schema_name, files, None)
    kept = {file.name for file in manifest.files}
    for path in raw.iterdir():
        if path.name not in kept and not any(
            path.name.startswith(f"{name}.") for name in kept if manifest.recipe
        ):
            remove(path)
    manifest.write(raw)


def source_changed(params: Params, root: Path) -> bool:
    """Whether artifacts/raw/ differs from data.source, by name, size and modification time (by content where the times differ)."""
    raw = root / RAW
    old = _old_manifest(raw)
    if (
        old is None
        or old.schema != params.data.schema_name
        or any(not (raw / file.name).exists() for file in old.files)
    ):
        return True
    if params.data.source == BUILT_IN:
        return old.recipe != _recipe(params)
    known = {file.name: file for file in old.files}
    sources = source_files(params.data, root)
    same = [source.name for source in sources] == list(known)
    return (
        old.recipe is not None
        or not same
        or not all(_unchanged(source, raw, known[source.name]) for source in sources)
    )


def source_files(data: Data, root: Path) -> list[Path]:
    """The files that data.source names, up to data.until, in natural order (day_2 before day_10), which is taken for time order."""
    source, home = data.source, os.environ.get(SOURCE_HOME)
    path = (Path(home) if home else root) / source
    if path.is_file():
        found = [path]
    elif path.is_dir():
        found = [
            file
            for file in path.iterdir()
            if file.is_file() and file.suffix in SUFFIXES and not file.name.startswith(".")
        ]
    else:
        names = glob.glob(str(path), recursive=True)  # noqa: PTH207 (absolute patterns too)
        found = [Path(name) for name in names if Path(name).is_file()]
    if not found:
        endings = f"with no ending or {', '.join(SUFFIXES[1:])}"
        raise DataError(
            f'data.source: no log found at {source!r}; give a file, a folder of logs ({endings}), a glob, or "{BUILT_IN}"'
        )
    names = [file.name for file in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"data.source: {source!r} names two files called {twice[0]}; file names must differ"
        )
    if taken := sorted({*names} & {*RESERVED}):
        raise DataError(f"data.source: a log cannot be called {taken[0]}; rename it")
    found.sort(key=lambda file: natural(file.name))
    if data.until is not None:
        if data.until not in names:
            raise DataError(
                f"data.until: no log called {data.until!r} at {source!r}; there are {found[0].name} to {found[-1].name}"
            )
        found = found[: [file.name for file in found].index(data.until) + 1]
    if empty := [file for file in found if file.stat().st_size == 0]:
        raise DataError(f"data.source: {empty[0].name} is empty; remove it, or fetch it again")
    return found


def natural(name: str) -> list[tuple[bool, int, str]]:
    """The key of natural order."""
    return [
        (part.isdecimal(), int(part) if part.isdecimal() else 0, part)
        for part in re.split(r"(\d+)", name)
    ]


def _old_manifest(raw: Path) -> Manifest | None:
    return Manifest.read(raw) if (raw / "manifest.json").exists() else None


def _unchanged(source: Path, raw: Path, entry: Entry) -> bool:
    target, stat = raw / source.name, source.stat()
    if not target.exists() or stat.st_size != entry.bytes or target.stat().st_size != entry.bytes:
        return False
    if stat.st_mtime_ns == target.stat().st_mtime_ns:
        return True
    return find_mismatch(source.parent, {source.name: entry.sha256}) is None


def _copy(source: Path, raw: Path, known: Entry | None) -> Entry:
    """A copy, not a link: DVC protects what it tracks by making it read-only, and the original is the user's."""
    if known and _unchanged(source, raw, known):
        return known
    log.info(f"{source.name}, {source.stat().st_size:,} bytes")
    stat = source.stat()
    with replaced(raw / source.name) as scratch:
        sha256 = copy_with_sha256(source, scratch)
        os.utime(
            scratch, ns=(stat.st_atime_ns, stat.st_mtime_ns)
        )  # the next look need not read the file again
    return Entry(source.name, (raw / source.name).stat().st_size, sha256)


def _recipe(params: Params) -> dict[str, Any]:
    """All that the sample's bytes follow from: its parameters and the code and declaration that make it."""
    code = sorted(Path(__file__).parents[1].glob("sample/*.py"))
    made_by = {
        path.name: sha256_file(path)
        for path in [*code, SCHEMAS / f"{params.data.schema_name}.yaml"]
    }
    return {
        "num_rows": params.sample.num_rows,
        "num_days": params.data.days,
        "seed": params.sample.seed,
        "made_by": made_by,
    }


def _make_sample(params: Params, root: Path, raw: Path) -> Manifest:
    log = raw / SAMPLE_LOG
    schema = load_schema(params.data.schema_name)
    with Progress("collect", params.sample.num_rows, root) as progress:
        write_sample(
            log, params.sample.num_rows, params.data.days, params.sample.seed, schema, progress
        )
    return Manifest(
        params.data.schema_name,
        [Entry(log.name, log.stat().st_size, sha256_file(log))],
        _recipe(params),
    )
