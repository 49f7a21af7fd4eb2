"""The stage `collect`: copy the user's log files to artifacts/raw, or make the sample there.

artifacts/raw has the tree of data.source. `discovery` has the rules by which logs are found,
`local` and `remote` bring them here, and the manifest lists them with their sizes and hashes.
"""

import os
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from common.artifact import MANIFEST, DamageError, ListedFile
from common.config.params import Data, Params
from common.files import DataError, remove, replaced, sha256_file, write_json
from common.layout import RAW
from common.logs import get_logger
from common.progress import Progress
from common.user_files import expand_home, variable_hint
from features.collect.discovery import SUFFIXES, FoundLog, check_names
from features.collect.local import LocalLogs, find_local_logs
from features.collect.manifest import RawFile, RawManifest
from features.collect.remote import RemoteLogs, find_remote_logs, is_url
from features.sample.generate import write_sample
from features.schema.schema import SCHEMAS, Partitions, Schema, load_schema

log = get_logger("collect")

BUILT_IN = "sample"
SAMPLE_LOG = "sample.tsv"
# Environment variable: the folder that a relative data.source is looked for in. Without it, that is
# the current folder.
SOURCE_HOME = "CLICKMILL_SOURCE_HOME"
NOT_TAKEN = Path("runs/not_taken.json")  # reason -> names of the files


def collect(params: Params, root: Path) -> None:
    """Bring the log files of data.source into artifacts/raw, copying only new and changed ones.

    The files there that are no logs are counted in the log line, and listed in NOT_TAKEN.

    Args:
        params: The parameters.
        root: The repository.

    Raises:
        ConfigError, ConnectionError, DataError: See `find_source`.
    """
    raw = root / RAW
    old = _read_manifest_if_any(raw)
    if params.data.source == BUILT_IN:
        if old and _is_sample_of(old, params, raw):
            log.info("1 file, unchanged")
        else:
            _begin(raw, [SAMPLE_LOG])
            _make_sample(params, root, raw).write(raw)
        return
    source, schema = find_source(params.data, root), load_schema(params.data.schema_name)
    _report_not_taken(source, root)
    if old and _is_source_of(old, source, schema, params, raw):
        log.info(f"{len(old.files)} files, unchanged")
        return
    old_files = {file.name: file for file in old.files} if old else {}
    logs = source.discovery.logs
    same = {
        found.name
        for found in logs
        if found.name in old_files and source.is_same(found, raw, old_files[found.name])
    }
    source.prepare([found for found in logs if found.name not in same])
    _begin(raw, [found.name for found in logs])
    files = []
    for found in logs:
        is_same = found.name in same
        listed = old_files[found.name].listed if is_same else _bring(source, found, raw)
        partitions = _columns_of(found, schema)
        files.append(RawFile(found.name, listed, found.day, partitions, source.fingerprint(found)))
    RawManifest(params.data.schema_name, files, None).write(raw)
    source.finish()


def source_changed(params: Params, root: Path) -> bool:
    """Return whether the files in artifacts/raw are not those of data.source.

    Raises:
        ConfigError, ConnectionError, DataError: See `find_source`.
    """
    raw = root / RAW
    manifest = _read_manifest_if_any(raw)
    if manifest is None:
        return True
    if params.data.source == BUILT_IN:
        return not _is_sample_of(manifest, params, raw)
    schema = load_schema(params.data.schema_name)
    return not _is_source_of(manifest, find_source(params.data, root), schema, params, raw)


def find_source(data: Data, root: Path) -> LocalLogs | RemoteLogs:
    """Find the logs that data.source names, up to data.until, in time order.

    The natural order of days (day_2 before day_10) is taken for time order.

    Args:
        data: The section `data` of params.yaml.
        root: The folder of a relative data.source, unless SOURCE_HOME is set.

    Raises:
        DataError: There is no log, none of the days is called data.until, or see `select_logs`
            and `check_names`.
        ConfigError, ConnectionError: See `find_remote_logs`.
    """
    home = os.environ.get(SOURCE_HOME)
    path = (Path(home) if home else root) / expand_home(Path(data.source))
    is_remote = is_url(data.source)
    try:
        source = find_remote_logs(data.source, root) if is_remote else find_local_logs(path)
        check_names([found.name for found in source.discovery.logs])
    except DataError as error:
        raise DataError(f"data.source: {error}") from None
    if not source.discovery.logs:
        suffixes = f"with no suffix or {', '.join(SUFFIXES[1:])}"
        others = source.discovery.describe_not_taken()
        raise DataError(
            f"data.source: no log found at {data.source!r}"
            f"{'' if is_remote else variable_hint(path)}"
            f"{f', only files not taken: {others}' if others else ''}; "
            f'give a file, a folder of logs ({suffixes}), a glob, or "{BUILT_IN}"'
        )
    if data.until is None:
        return source
    days = source.discovery.days
    if data.until not in days:
        raise DataError(
            f"data.until: no log or day called {data.until!r} at {data.source!r}; "
            f"there are {days[0]} to {days[-1]}"
        )
    return replace(source, discovery=source.discovery.up_to(data.until))


def _is_source_of(
    manifest: RawManifest,
    source: LocalLogs | RemoteLogs,
    schema: Schema,
    params: Params,
    raw: Path,
) -> bool:
    """Return whether the files in artifacts/raw are the logs of data.source."""
    logs, files = source.discovery.logs, manifest.files
    return (
        manifest.recipe is None
        and manifest.schema == params.data.schema_name
        and [(found.name, found.day, _columns_of(found, schema)) for found in logs]
        == [(file.name, file.day, file.partitions) for file in files]
        and all(source.is_same(found, raw, file) for found, file in zip(logs, files, strict=True))
    )


def _columns_of(found: FoundLog, schema: Schema) -> Partitions:
    """Return the partitions of a log that are columns of the schema.

    Raises:
        DataError: The label is one of them.
    """
    if schema.label in found.partitions:
        raise DataError(
            f"data.source: {found.name} is in a partition of the label, {schema.label}; "
            "write the label into the files"
        )
    return {name: value for name, value in found.partitions.items() if name in schema.names}


def _report_not_taken(source: LocalLogs | RemoteLogs, root: Path) -> None:
    """Count the files that are no logs in the log line, and list them in NOT_TAKEN."""
    remove(root / NOT_TAKEN)
    if source.discovery.not_taken:
        (root / NOT_TAKEN).parent.mkdir(parents=True, exist_ok=True)
        write_json(root / NOT_TAKEN, source.discovery.not_taken)
        log.info(f"not taken: {source.discovery.describe_not_taken()}; see {NOT_TAKEN}")


def _begin(raw: Path, names: list[str]) -> None:
    """Remove the manifest, and everything else but the files of these names.

    Without this, a killed run would leave the old manifest beside new files; and a folder may take
    the place of a file.
    """
    raw.mkdir(parents=True, exist_ok=True)
    (raw / MANIFEST).unlink(missing_ok=True)
    folders = {str(folder) for name in names for folder in PurePosixPath(name).parents}
    _remove_others(raw, raw, {*names}, folders)


def _remove_others(folder: Path, raw: Path, names: set[str], folders: set[str]) -> None:
    for path in folder.iterdir():
        name = path.relative_to(raw).as_posix()
        if name in folders and path.is_dir() and not path.is_symlink():
            _remove_others(path, raw, names, folders)
        elif name not in names or path.is_dir():
            remove(path)


def _read_manifest_if_any(raw: Path) -> RawManifest | None:
    """Return the manifest of the last run; None if there is none, or it is damaged."""
    if not (raw / MANIFEST).exists():
        return None
    try:
        return RawManifest.read(raw)
    except DamageError as error:
        log.warning(f"{error.fault}; all log files are copied again")
        return None


def _bring(source: LocalLogs | RemoteLogs, found: FoundLog, raw: Path) -> ListedFile:
    """Bring a log into the folder `raw`."""
    target = raw / found.name
    with replaced(target) as scratch:
        sha256 = source.fetch(found, scratch)
        log.info(f"{found.name}, {scratch.stat().st_size:,} bytes")
    return ListedFile.of(target, sha256)


def _is_sample_of(manifest: RawManifest, params: Params, raw: Path) -> bool:
    """Return whether the files in artifacts/raw are the built-in sample."""
    is_here = all((raw / file.name).is_file() for file in manifest.files)
    is_schema = manifest.schema == params.data.schema_name
    return is_here and is_schema and manifest.recipe == _sample_recipe(params)


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
