"""The rules by which the logs in a folder are found, on this machine or in a store.

They are functions of names, so that a folder gives the same logs wherever it lies. A name is a path
relative to the folder, with `/`.

A folder called KEY=VALUE is a partition, as Hive and Spark write them:
`day=2026-01-03/hour=07/part-0.parquet`. One of the keys is the day, see `day_of_partitions`.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import PurePosixPath
from urllib.parse import quote, unquote

from common.artifact import MANIFEST
from common.files import DataError
from common.natural_order import natural_order_key
from common.user_files import path_as_text
from features.schema.schema import Partitions

# The endings of the log files in a folder. The day files of Criteo's Terabyte log have none.
SUFFIXES = (
    *("", ".tsv", ".txt", ".csv", ".jsonl", ".ndjson", ".json"),
    *(".gz", ".zst", ".bz2", ".xz", ".lz4", ".zip"),
    *(".parquet", ".orc", ".arrow", ".arrows", ".feather", ".ipc"),
)
# The suffixes of the files that `write_sample` writes beside a log.
SUFFIXES_BESIDE_SAMPLE = (".truth.parquet", ".optimum.json")
# Names that a log file cannot have, because files beside the logs or beside their shards have them.
RESERVED_NAMES = (MANIFEST, "bad_rows", "bad_rows.parquet")
# Other files have the name of a log with something added, and a name has at most 255 bytes.
MAX_NAME_BYTES = 200
HIDDEN = ("_", ".")  # the beginnings of names that are no logs: _SUCCESS, .part-0.parquet.crc
PARTITION = re.compile(r"([\w.-]+)=(.*)", re.DOTALL)
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
DATE = re.compile(r"\d{4}-\d{2}-\d{2}|\d{8}", re.ASCII)
CALENDAR = ("year", "month", "day")  # keys that make a date together
# Names in a table whose own record says which of its files count: Delta, Hudi, Iceberg.
TABLES = (
    (re.compile(r"(?:^|.*/)_delta_log/"), "Delta"),
    (re.compile(r"(?:^|.*/)\.hoodie/"), "Hudi"),
    (re.compile(r"(?:^|.*/)metadata/[^/]*\.metadata\.json$"), "Iceberg"),
)
TABLE_FOLDERS = ("_delta_log", ".hoodie", "metadata")
NUM_EXAMPLES = 3


@dataclass(frozen=True)
class FoundLog:
    """A log that was found.

    Attributes:
        name: Its path relative to the folder, with `/`; the name of a file that was named alone.
        day: The day that its folders name; None if they name none, and the file is a day.
        partitions: The values of its partitions.
    """

    name: str
    day: str | None = None
    partitions: Partitions = field(default_factory=dict)

    @property
    def day_name(self) -> str:
        """The name of its day."""
        return self.day or self.name


@dataclass(frozen=True)
class Discovery:
    """The logs in a folder and the other files there.

    Attributes:
        logs: The logs, in time order.
        not_taken: The reason why a file is no log -> the names of such files, in natural order.
    """

    logs: list[FoundLog]
    not_taken: dict[str, list[str]]

    @property
    def days(self) -> list[str]:
        """The names of the days, in time order."""
        return list(dict.fromkeys(log.day_name for log in self.logs))

    def up_to(self, day: str) -> "Discovery":
        """Return this discovery with the logs of the later days among the files not taken."""
        days = self.days
        last = days.index(day)
        asked = {*days[: last + 1]}
        logs = [log for log in self.logs if log.day_name in asked]
        later = [log.name for log in self.logs if log.day_name not in asked]
        return Discovery(logs, self.not_taken | ({"after data.until": later} if later else {}))

    def describe_not_taken(self) -> str:
        """Return how many files are not taken, for which reasons, and the first of each."""
        parts = []
        for reason, names in self.not_taken.items():
            examples = ", ".join(names[:NUM_EXAMPLES])
            more = ", ..." if len(names) > NUM_EXAMPLES else ""
            parts.append(f"{reason}: {len(names):,} ({examples}{more})")
        return "; ".join(parts)


def select_logs(
    names: Iterable[str],
    *,
    by_ending: bool = True,
    outer: Partitions | None = None,
    not_files: Sequence[str] = (),
) -> Discovery:
    """Select the logs among the files of a folder.

    Args:
        names: The names of all files in the folder, at any depth.
        by_ending: Whether only files with an ending of SUFFIXES are logs. A pattern chooses itself.
        outer: The partitions that the path of the folder itself is in. They give columns, but no
            days, because they are the same for all files.
        not_files: The names of what is neither a file nor a folder, such as pipes.

    Raises:
        DataError: The folder is a table of Delta, Hudi or Iceberg, or the partitions are not the
            same in all paths.
    """
    names = sorted(names, key=natural_order_key)
    refuse_table(names)
    every_name = {*names}
    taken, not_taken = [], dict[str, list[str]]()
    if not_files:
        not_taken["no regular file"] = sorted(map(_as_text, not_files), key=natural_order_key)
    for name in names:
        if reason := _reason_against(name, every_name, by_ending):
            not_taken.setdefault(reason, []).append(_as_text(name))
        else:
            taken.append(name)
    days = days_of(taken)
    logs = []
    for name in taken:
        partitions = partitions_of(PurePosixPath(name).parts[:-1])
        if partitions and days[name] is None:
            reason = f"day is {NULL_PARTITION}"
            not_taken.setdefault(reason, []).append(name)
        else:
            logs.append(FoundLog(name, days[name], {**(outer or {}), **partitions}))
    logs.sort(key=lambda log: (natural_order_key(log.day_name), natural_order_key(log.name)))
    return Discovery(logs, not_taken)


def partitions_of(folders: Sequence[str]) -> dict[str, str | None]:
    """Return the partitions that the names of folders state, from the outermost one.

    Raises:
        DataError: A key occurs twice.
    """
    partitions: dict[str, str | None] = {}
    for folder in folders:
        if found := PARTITION.fullmatch(folder):
            key, value = found[1], unquote(found[2])
            if key in partitions:
                raise DataError(
                    f"{'/'.join(folders)} has the partition {key} twice; rename one of the folders"
                )
            partitions[key] = None if value in ("", NULL_PARTITION) else value
    return partitions


def trailing_partitions(parts: Sequence[str]) -> Sequence[str]:
    """Return the last parts of a path that are partitions."""
    start = len(parts)
    while start and PARTITION.fullmatch(parts[start - 1]):
        start -= 1
    return parts[start:]


def days_of(names: Collection[str]) -> dict[str, str | None]:
    """Return the day of each log by its partitions.

    Args:
        names: The names of all logs in the folder.

    Returns:
        The day by name; None where the path has no partitions, or the day is null.

    Raises:
        DataError: The paths do not all have the same keys in the same order.
    """
    partitions = {name: partitions_of(PurePosixPath(name).parts[:-1]) for name in names}
    if not partitions:
        return {}
    first, keys = next((name, [*values]) for name, values in partitions.items())
    for name, values in partitions.items():
        if [*values] != keys:
            raise DataError(
                f"{first} has {_describe_keys(keys)}, but {name} has "
                f"{_describe_keys([*values])}; move one of them elsewhere, or give a glob"
            )
    day_keys = _day_keys(keys, list(partitions.values()))
    return {name: _day(values, day_keys) for name, values in partitions.items()}


def partition_folders(partitions: Partitions) -> list[str]:
    """Return the names of folders that state these partitions."""
    return [
        f"{key}={NULL_PARTITION if value is None else quote(value, safe='')}"
        for key, value in partitions.items()
    ]


def _day_keys(keys: list[str], partitions: Sequence[Partitions]) -> list[str]:
    """Return the keys that name the day.

    These are year, month and day (or year and month), if the values are numbers; otherwise the
    outermost key whose values are all dates; otherwise the outermost key.
    """
    calendar = [next((key for key in keys if key.lower() == unit), None) for unit in CALENDAR]
    present = [key for key in calendar if key is not None]
    if present == calendar[: len(present)] and len(present) > 1:
        values = [one[key] for one in partitions for key in present]
        if all(value is None or re.fullmatch(r"[0-9]{1,4}", value) for value in values):
            return present
    for key in keys:
        if all(one[key] is None or _as_date(one[key]) for one in partitions):
            return [key]
    return keys[:1]


def _day(values: Partitions, day_keys: list[str]) -> str | None:
    parts = [values[key] for key in day_keys]
    known = [part for part in parts if part is not None]
    if not parts or len(known) < len(parts):
        return None
    if len(known) == 1:
        return _as_date(known[0]) or known[0]
    return "-".join([f"{int(known[0]):04}", *(f"{int(part):02}" for part in known[1:])])


def _as_date(value: str | None) -> str | None:
    """Return a date as 2026-01-03, from that or from 20260103; None if it is no date."""
    if value is None or not DATE.fullmatch(value):
        return None
    try:
        return date.fromisoformat(value).isoformat()
    except ValueError:
        return None


def _reason_against(name: str, names: Collection[str], by_ending: bool) -> str | None:
    """Return why a file is no log, None if it is one."""
    path = PurePosixPath(name)
    if any(part.startswith(HIDDEN) for part in path.parts):
        return "name begins with _ or ."
    for suffix in SUFFIXES_BESIDE_SAMPLE:
        if name.endswith(suffix) and name.removesuffix(suffix) in names:
            return "written by clickmill sample beside a log"
    if by_ending and path.suffix.lower() not in SUFFIXES:
        return "ending is not that of a log"
    return None


def refuse_table(names: Iterable[str]) -> None:
    """Refuse a table whose removed and replaced files still lie in its folders.

    Raises:
        DataError: One of the names is that of a file by which a table records its files.
    """
    for name in names:
        for pattern, kind in TABLES:
            if found := pattern.match(name):
                raise DataError(
                    f"{found[0]} belongs to a table of {kind}, in whose folders files"
                    " still lie that were removed from the table; write the table's rows as plain"
                    " Parquet files (in Spark: .write.partitionBy(...).parquet(...)) and give that"
                    " folder"
                )


def check_names(names: Sequence[str]) -> None:
    """Check that logs can have these names in artifacts, and their shards beside each other.

    Raises:
        DataError: A name is reserved, not UTF-8, not a path, or a part of it is too long; or a log
            and a folder have the same name.
    """
    for name in names:
        _check_name(name)
    _check_conflicts(names)


def _check_name(name: str) -> None:
    """Check that a log's name can be written to a manifest, and be part of other names."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raw = name.encode(errors="surrogateescape")
        raise DataError(f"the name of the log {raw!r} is not UTF-8; rename it") from None
    if (first := name.split("/")[0]) in RESERVED_NAMES:
        raise DataError(f"a log cannot be called {first}; rename it")
    for part in name.split("/"):
        if part in ("", ".", "..") or "\0" in part:
            raise DataError(f"the name of the log {name!r} cannot be that of a file; rename it")
        if (num_bytes := len(part.encode())) > MAX_NAME_BYTES:
            raise DataError(
                f"the name of the log {part[:40]!r}... has {num_bytes} bytes, at most"
                f" {MAX_NAME_BYTES} are possible; rename it"
            )


def _check_conflicts(names: Sequence[str]) -> None:
    """Check that the logs, and the shards beside each other, can have these names."""
    folders = {str(folder) for name in names for folder in PurePosixPath(name).parents}
    for name in names:
        if not folders.isdisjoint({name, f"{name}.parquet"}):
            raise DataError(
                f"the log {name} and a folder of logs beside it have the same name;"
                " rename one of them"
            )


def _as_text(name: str) -> str:
    """Return a name with bytes that are not UTF-8 escaped."""
    return path_as_text(PurePosixPath(name))


def _describe_keys(keys: Sequence[str]) -> str:
    return f"the partitions {', '.join(keys)}" if keys else "no partitions"
