"""The stage `collect`: copy the user's log files to artifacts/raw, or make the sample there.

The manifest (common/artifact.py) lists the files with their sizes and hashes, by which later runs
see what has changed.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from common.artifact import MANIFEST, Artifact, DamageError, ListedFile, write_manifest
from common.config.params import Data, Params
from common.files import DataError, copy_with_sha256, remove, replaced, sha256_file
from common.hashed_files import find_mismatch
from common.layout import RAW
from common.logs import get_logger
from common.natural_order import natural_order_key
from common.progress import Progress
from common.user_files import expand_home, find_files, variable_hint
from features.sample.generate import write_sample
from features.schema.schema import SCHEMAS, load_schema

log = get_logger("collect")

BUILT_IN = "sample"
SAMPLE_LOG = "sample.tsv"
# The suffixes of the log files in a folder. The day files of Criteo's Terabyte log have none.
SUFFIXES = (
    *("", ".tsv", ".txt", ".csv", ".jsonl", ".ndjson", ".json"),
    *(".gz", ".zst", ".bz2", ".xz", ".lz4", ".zip"),
    *(".parquet", ".orc", ".arrow", ".arrows", ".feather", ".ipc"),
)
# The suffixes of the files that `write_sample` writes beside a log.
SUFFIXES_BESIDE_SAMPLE = (".truth.parquet", ".optimum.json")
# Names that a log file cannot have, because files beside the logs or beside their shards have them.
RESERVED_NAMES = (MANIFEST, "bad_rows")
# Other files have the name of a log with something added, and a name has at most 255 bytes.
MAX_NAME_BYTES = 200
# Environment variable: the folder that a relative data.source is looked for in. Without it, that is
# the current folder.
SOURCE_HOME = "CLICKMILL_SOURCE_HOME"


@dataclass(frozen=True)
class RawFile:
    """A log file in artifacts/raw.

    Attributes:
        name: Its name.
        listed: Its size and checksums.
    """

    name: str
    listed: ListedFile

    @property
    def bytes(self) -> int:
        """Its size in bytes."""
        return self.listed.bytes

    @property
    def sha256(self) -> str:
        """Its SHA-256, in hex."""
        return self.listed.sha256


@dataclass(frozen=True)
class RawManifest:
    """The list of the log files in artifacts/raw.

    Attributes:
        schema: The name of their schema.
        files: The files, in time order.
        recipe: Everything that decides the bytes of the built-in sample; None for a user's log.
    """

    schema: str
    files: list[RawFile]
    recipe: dict[str, Any] | None

    @property
    def num_bytes(self) -> int:
        """The size of all files."""
        return sum(file.bytes for file in self.files)

    @classmethod
    def read(cls, raw: Path) -> Self:
        """Read the manifest in a folder.

        Raises:
            DataError: There is none, or it is damaged.
        """
        artifact = Artifact.open(raw)
        files = [RawFile(name, artifact.files[name]) for name in artifact.about["logs"]]
        return cls(artifact.about["schema"], files, artifact.about["recipe"])

    def write(self, raw: Path) -> None:
        """Write the manifest to a folder."""
        logs = [file.name for file in self.files]
        write_manifest(
            raw,
            {"schema": self.schema, "logs": logs, "recipe": self.recipe},
            {file.name: file.listed for file in self.files},
        )


def collect(params: Params, root: Path) -> None:
    """Bring the log files of data.source into artifacts/raw, copying only new and changed ones.

    Args:
        params: The parameters.
        root: The repository.

    Raises:
        DataError: See `source_files`.
    """
    raw = root / RAW
    old = _read_manifest_if_any(raw)
    if not source_changed(params, root):
        log.info(f"{len(old.files) if old else 0} files, unchanged")
        return
    raw.mkdir(parents=True, exist_ok=True)
    # Without this, a killed run would leave the old manifest beside new files.
    (raw / MANIFEST).unlink(missing_ok=True)
    if params.data.source == BUILT_IN:
        manifest = _make_sample(params, root, raw)
    else:
        old_files = {file.name: file for file in old.files} if old else {}
        files = [
            _copy_if_changed(source, raw, old_files.get(source.name))
            for source in source_files(params.data, root)
        ]
        manifest = RawManifest(params.data.schema_name, files, None)
    _remove_other_files(raw, manifest)
    manifest.write(raw)


def source_changed(params: Params, root: Path) -> bool:
    """Return whether the files in artifacts/raw are not those of data.source.

    Files are compared by name, size and modification time; where only the times differ, by content.

    Raises:
        DataError: See `source_files`.
    """
    raw = root / RAW
    manifest = _read_manifest_if_any(raw)
    if manifest is None or manifest.schema != params.data.schema_name:
        return True
    if any(not (raw / file.name).is_file() for file in manifest.files):
        return True
    if params.data.source == BUILT_IN:
        return manifest.recipe != _sample_recipe(params)
    sources = source_files(params.data, root)
    if manifest.recipe is not None:
        return True
    if [source.name for source in sources] != [file.name for file in manifest.files]:
        return True
    return not all(
        _is_same_file(source, raw, file)
        for source, file in zip(sources, manifest.files, strict=True)
    )


def source_files(data: Data, root: Path) -> list[Path]:
    """Return the log files that data.source names, up to data.until, in natural order.

    Natural order (day_2 before day_10) is taken for time order.

    Args:
        data: The section `data` of params.yaml.
        root: The folder of a relative data.source, unless SOURCE_HOME is set.

    Raises:
        DataError: There is no log, a name is reserved, occurs twice, is too long or is not UTF-8,
            or none of the logs is called data.until.
    """
    home = os.environ.get(SOURCE_HOME)
    path = (Path(home) if home else root) / expand_home(Path(data.source))
    files = find_logs(path)
    if not files:
        suffixes = f"with no suffix or {', '.join(SUFFIXES[1:])}"
        raise DataError(
            f"data.source: no log found at {data.source!r}{variable_hint(path)}; "
            f'give a file, a folder of logs ({suffixes}), a glob, or "{BUILT_IN}"'
        )
    names = [file.name for file in files]
    for name in names:
        _check_name(name)
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise DataError(
            f"data.source: {data.source!r} names two files called {duplicates[0]}; "
            "file names must differ"
        )
    reserved = sorted({*names} & {*RESERVED_NAMES})
    if reserved:
        raise DataError(f"data.source: a log cannot be called {reserved[0]}; rename it")
    files.sort(key=lambda file: natural_order_key(file.name))
    if data.until is not None:
        names = [file.name for file in files]
        if data.until not in names:
            raise DataError(
                f"data.until: no log called {data.until!r} at {data.source!r}; "
                f"there are {names[0]} to {names[-1]}"
            )
        files = files[: names.index(data.until) + 1]
    return files


def _check_name(name: str) -> None:
    """Check that a log's name can be written to a manifest, and be part of other names."""
    try:
        num_bytes = len(name.encode())
    except UnicodeEncodeError:
        raise DataError(
            f"data.source: the name of the log {os.fsencode(name)!r} is not UTF-8; rename it"
        ) from None
    if num_bytes > MAX_NAME_BYTES:
        raise DataError(
            f"data.source: the name of the log {name[:40]!r}... has {num_bytes} bytes, at most"
            f" {MAX_NAME_BYTES} are possible; rename it"
        )


def find_logs(path: Path) -> list[Path]:
    """Return the file at a path, the logs in the folder at it, or the files that match the glob.

    The files that `clickmill sample` writes beside a log are left out, unless one is named alone.
    """
    files = find_files(path)
    if files == [path]:
        return files
    if path.is_dir():
        files = [
            file for file in files if file.suffix in SUFFIXES and not file.name.startswith(".")
        ]
    return [file for file in files if not _is_about_sample(file)]


def _is_about_sample(path: Path) -> bool:
    """Return whether the name is that of a log with one of `write_sample`'s suffixes."""
    return any(
        path.name.endswith(suffix) and path.with_name(path.name.removesuffix(suffix)).is_file()
        for suffix in SUFFIXES_BESIDE_SAMPLE
    )


def _read_manifest_if_any(raw: Path) -> RawManifest | None:
    """Return the manifest of the last run; None if there is none, or it is damaged."""
    if not (raw / MANIFEST).exists():
        return None
    try:
        return RawManifest.read(raw)
    except DamageError as error:
        log.warning(f"{error.fault}; all log files are copied again")
        return None


def _remove_other_files(raw: Path, manifest: RawManifest) -> None:
    """Remove everything but the listed files and, beside the sample log, the files about it.

    These are NAME.truth.parquet and NAME.optimum.json, see `write_sample`.
    """
    names = {file.name for file in manifest.files}
    for path in raw.iterdir():
        is_about_sample = manifest.recipe is not None and path.name.startswith(f"{SAMPLE_LOG}.")
        if path.name not in names and not is_about_sample:
            remove(path)


def _is_same_file(source: Path, raw: Path, entry: RawFile) -> bool:
    """Return whether a source file is the file that was copied."""
    copy, stat = raw / source.name, source.stat()
    if not copy.is_file() or stat.st_size != entry.bytes or copy.stat().st_size != entry.bytes:
        return False
    if stat.st_mtime_ns == copy.stat().st_mtime_ns:
        return True
    # One of the two was written since: the source, or the copy, which may then be damaged.
    return all(
        find_mismatch(path.parent, {path.name: entry.sha256}) is None for path in (source, copy)
    )


def _copy_if_changed(source: Path, raw: Path, old: RawFile | None) -> RawFile:
    """Copy a log file, unless it is the file that was copied before.

    It is a copy and not a link, because DVC makes the files that it tracks read-only, and the
    original is the user's.
    """
    if old and _is_same_file(source, raw, old):
        return old
    stat = source.stat()
    log.info(f"{source.name}, {stat.st_size:,} bytes")
    with replaced(raw / source.name) as scratch:
        sha256 = copy_with_sha256(source, scratch)
        # With equal times, the next run need not read the file to see that it is the same.
        os.utime(scratch, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return RawFile(source.name, ListedFile.of(raw / source.name, sha256))


def _sample_recipe(params: Params) -> dict[str, Any]:
    """Return what decides the sample's bytes: parameters, and the hashes of code and schema."""
    code = sorted(Path(__file__).parents[1].glob("sample/*.py"))
    schema = SCHEMAS / f"{params.data.schema_name}.yaml"
    return {
        "num_rows": params.sample.num_rows,
        "num_days": params.data.days,
        "seed": params.sample.seed,
        "made_by": {path.name: sha256_file(path) for path in [*code, schema]},
    }


def _make_sample(params: Params, root: Path, raw: Path) -> RawManifest:
    path = raw / SAMPLE_LOG
    schema = load_schema(params.data.schema_name)
    num_rows = params.sample.num_rows
    with Progress("collect", num_rows, root) as progress:
        write_sample(path, num_rows, params.data.days, params.sample.seed, schema, progress)
    file = RawFile(path.name, ListedFile.of(path))
    return RawManifest(params.data.schema_name, [file], _sample_recipe(params))
