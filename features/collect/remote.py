"""Logs in a store: `s3://`, `gs://`, `hdfs://`, or one file at `http://` or `https://`.

fsspec talks to the stores. Credentials, the endpoint and a proxy come from the environment, never
from params.yaml. An object is fetched once: its URL, size and version (ETag, generation or time)
make its fingerprint, which the manifest records.

Objects are fetched to PARTS first. So a run that fails or is killed leaves artifacts/raw as it was,
and the next run goes on where it stopped, in the middle of an object as well.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import fsspec
from fsspec.utils import glob_translate

from common.config.loading import ConfigError
from common.files import DataError, remove, sha256_file
from common.full_disk import find_full_disk, full_disk_named
from common.layout import RAW
from common.logs import get_logger
from common.masking import mask_passwords
from common.printable import first_line, printable
from common.retry import is_worth_retrying
from features.collect.discovery import (
    TABLE_FOLDERS,
    Discovery,
    FoundLog,
    partitions_of,
    refuse_table,
    select_logs,
    trailing_partitions,
)
from features.collect.manifest import RawFile

log = get_logger("collect")

PARTS = RAW.with_name(".raw.parts")
URL = re.compile(r"([a-z][a-z0-9+.-]*)://.+", re.DOTALL)
# The schemes, and where their credentials come from.
CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role or profile",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "hdfs": "HADOOP_CONF_DIR and a Kerberos ticket",
    "http": "NETRC, the path of a .netrc file",
    "https": "NETRC, the path of a .netrc file",
}
EXTRAS = {"gs": "gs"}  # the extra of clickmill that has the package of a scheme
PATTERN = re.compile(r"[*?\[]")
# The keys under which fsspec's file systems give the version of an object, the best first.
VERSION_KEYS = ("ETag", "etag", "generation", "LastModified", "Last-Modified", "updated", "mtime")
BLOCK_BYTES = 8 << 20
NUM_THREADS = 8  # objects that are fetched beside each other
MAX_FAILURES = 5  # one after the other, without a byte between them
RETRY_DELAY_S = 0.5  # it doubles with each failure
STATUS_REFUSED = (401, 403)
STATUS_MISSING = (404, 410)

T = TypeVar("T")


@dataclass(frozen=True)
class Object:
    """An object of a store.

    Attributes:
        path: Its path in fsspec's file system.
        num_bytes: Its size; None if the store does not say.
        fingerprint: A hash of its URL, size and version, in hex; None if it has no version.
    """

    path: str
    num_bytes: int | None
    fingerprint: str | None

    @classmethod
    def of(cls, scheme: str, path: str, info: Mapping[str, Any]) -> "Object":
        """Describe an object by what fsspec says about it."""
        size = info.get("size")
        version = next((str(info[key]) for key in VERSION_KEYS if info.get(key) is not None), None)
        if version is None:
            return cls(path, size, None)
        facts = json.dumps([scheme, path, size, version])
        return cls(path, size, hashlib.sha256(facts.encode()).hexdigest())

    @property
    def part_name(self) -> str:
        """The name of its file in PARTS."""
        return self.fingerprint or f"{hashlib.sha256(self.path.encode()).hexdigest()}.unversioned"


@dataclass(frozen=True)
class RemoteLogs:
    """The logs at a URL.

    Attributes:
        scheme: The scheme of the URL.
        filesystem: The file system of fsspec.
        discovery: The logs, and the files that are none.
        objects: The object of each log, by the log's name.
        parts: The folder that objects are fetched to.
    """

    scheme: str
    filesystem: Any
    discovery: Discovery
    objects: dict[str, Object]
    parts: Path

    @property
    def num_bytes(self) -> int:
        """The size of all logs whose size is known."""
        return sum(self.objects[log.name].num_bytes or 0 for log in self.discovery.logs)

    def fingerprint(self, found: FoundLog) -> str | None:
        """Return the fingerprint of a log's object."""
        return self.objects[found.name].fingerprint

    def is_same(self, found: FoundLog, raw: Path, entry: RawFile) -> bool:
        """Return whether a log is the object that was fetched to the folder `raw` as `entry`."""
        fingerprint, copy = self.fingerprint(found), raw / entry.name
        if fingerprint is None or fingerprint != entry.fingerprint or not copy.is_file():
            return False
        return copy.stat().st_size == entry.bytes

    def prepare(self, wanted: Sequence[FoundLog]) -> None:
        """Fetch the objects of some logs to `parts`, which then has nothing else.

        Raises:
            ConfigError: The credentials are refused.
            ConnectionError: The store cannot be reached, or an object is replaced meanwhile.
            DataError: An object is gone.
        """
        objects = [self.objects[found.name] for found in wanted]
        self.parts.mkdir(parents=True, exist_ok=True)
        names = {f"{one.part_name}{ending}" for one in objects for ending in ("", ".tmp")}
        for path in self.parts.iterdir():
            if path.name not in names or path.name.endswith(".unversioned.tmp"):
                remove(path)
        threads = ThreadPoolExecutor(NUM_THREADS)
        try:
            list(threads.map(self._fetch_part, objects))
        finally:
            threads.shutdown(cancel_futures=True)

    def fetch(self, found: FoundLog, target: Path) -> str:
        """Move the object of a log from `parts`, and return its SHA-256 in hex."""
        (self.parts / self.objects[found.name].part_name).replace(target)
        return sha256_file(target)

    def finish(self) -> None:
        """Remove `parts`."""
        remove(self.parts)

    def _fetch_part(self, one: Object) -> None:
        part = self.parts / one.part_name
        if part.exists() and one.fingerprint is not None:
            return
        scratch = part.with_name(f"{part.name}.tmp")
        with full_disk_named(part, scratch):
            self._fetch(one, scratch)
        now = Object.of(self.scheme, one.path, self._ask(one.path, self.filesystem.info, one.path))
        if now != one or one.num_bytes not in (None, scratch.stat().st_size):
            remove(scratch)
            raise ConnectionError(
                f"data.source: {self._shown(one.path)} was replaced while it was fetched; run again"
            )
        scratch.replace(part)

    def _fetch(self, one: Object, scratch: Path) -> None:
        """Fetch what the file `scratch` does not have of an object yet; retry lost connections."""
        num_failures, by_ranges = 0, True
        while True:
            with scratch.open("ab") as file:
                before = file.tell()
                try:
                    self._append(one, file, by_ranges=by_ranges)
                    return
                except _NoRangesError:
                    by_ranges = False
                    file.truncate(0)
                    continue
                except Exception as error:  # each kind of store raises its own exceptions
                    num_failures = 0 if by_ranges and file.tell() > before else num_failures + 1
                    refusal = self._refusal(one.path, error)
                    if refusal or num_failures == MAX_FAILURES or find_full_disk(error):
                        raise refusal or self._lost(one.path, error) from None
                    log.info(
                        f"{self._shown(one.path)}: connection lost after {file.tell():,} bytes"
                        f" ({_reason(error)}), tried again"
                    )
                    if not by_ranges:
                        file.truncate(0)
            time.sleep(RETRY_DELAY_S * 2**num_failures)

    def _append(self, one: Object, file: Any, *, by_ranges: bool) -> None:
        """Append the rest of an object to a file, block by block.

        Raises:
            _NoRangesError: The store has no range requests, but the first bytes are not needed.
        """
        options = {"block_size": BLOCK_BYTES, "cache_type": "none"} if by_ranges else {}
        if not by_ranges or one.num_bytes is None:
            options = {"block_size": 0}  # from front to back
            by_ranges = False
        if one.num_bytes is not None and file.tell() >= one.num_bytes:
            return
        with self.filesystem.open(one.path, "rb", **options) as source:
            if by_ranges:
                source.seek(file.tell())
            elif file.tell():
                raise _NoRangesError
            while block := self._read(source):
                file.write(block)
                file.flush()
        if one.num_bytes is not None and file.tell() < one.num_bytes:
            raise ConnectionError(f"{file.tell():,} of {one.num_bytes:,} bytes received")

    def _read(self, source: Any) -> bytes:
        try:
            block: bytes = source.read(BLOCK_BYTES)
        except ValueError as error:
            if "range requests" in str(error):  # fsspec has no exception of its own for it
                raise _NoRangesError from None
            raise
        return block

    def _ask(self, path: str, question: Callable[..., T], *args: Any, **options: Any) -> T:
        return _ask(self.scheme, path, question, *args, **options)

    def _refusal(self, path: str, error: Exception) -> Exception | None:
        return _refusal(self.scheme, path, error)

    def _lost(self, path: str, error: Exception) -> Exception:
        return find_full_disk(error) or _unreachable(self.scheme, path, error)

    def _shown(self, path: str) -> str:
        return _shown(self.scheme, path)


class _NoRangesError(Exception):
    """The store answers no range requests, so an object is fetched from its beginning."""


def is_url(source: str) -> bool:
    """Return whether data.source is a URL, and not a path."""
    return URL.fullmatch(source) is not None


def find_remote_logs(url: str, root: Path) -> RemoteLogs:
    """Find the object at a URL, the logs below it, or the objects that match the pattern.

    Args:
        url: The URL. `http` and `https` name one file.
        root: The repository, in which objects are fetched to PARTS.

    Raises:
        ConfigError: The URL has credentials or an unknown scheme, a package is missing, or the
            credentials of the environment are refused.
        ConnectionError: The store cannot be reached.
        DataError: There is nothing at the URL; see also `select_logs`.
    """
    scheme = _check_url(url)
    filesystem, path = _open_filesystem(scheme, url)
    path = path if scheme.startswith("http") else path.rstrip("/")
    parts = root / PARTS
    folder, pattern = path, None
    if not scheme.startswith("http") and PATTERN.search(path):
        folder, pattern = _split_pattern(path), re.compile(glob_translate(path))
    else:
        info = _ask(scheme, path, filesystem.info, path)
        if info.get("type") == "file":
            name = unquote(urlsplit(path).path if scheme.startswith("http") else path)
            name = name.rpartition("/")[2]
            if not name:
                raise DataError(f"{_shown(scheme, path)} names no file; add its name")
            outer = partitions_of(trailing_partitions(path.split("/")[:-1]))
            discovery = Discovery([FoundLog(name, None, outer)], {})
            one = Object.of(scheme, path, info)
            return RemoteLogs(scheme, filesystem, discovery, {name: one}, parts)
    found = _ask(scheme, folder, filesystem.find, folder, detail=True)
    above = trailing_partitions(folder.split("/"))
    refuse_table([*found, *_tables_above(filesystem, scheme, folder, len(above))])
    objects = {}
    for full, info in found.items():
        name = full[len(folder) :].lstrip("/") if full.startswith(folder) else full
        is_asked = pattern is None or pattern.fullmatch(full)
        if name and is_asked and not full.endswith("/"):  # S3 has empty objects for folders
            objects[name] = Object.of(scheme, full, info)
    discovery = select_logs(objects, by_ending=pattern is None, outer=partitions_of(above))
    return RemoteLogs(scheme, filesystem, discovery, objects, parts)


def _check_url(url: str) -> str:
    """Return the scheme of a URL after a check that the URL has no credentials."""
    if "@" in url or mask_passwords(url) != url:  # the message does not repeat the URL
        raise ConfigError(
            "data.source is a URL with an @ or a secret in it: user, password and tokens come from "
            "the environment, not from params.yaml"
        )
    scheme = url.partition("://")[0]
    if scheme not in CREDENTIALS:
        known = ", ".join(f"{name}://" for name in CREDENTIALS)
        raise ConfigError(f"data.source: {scheme}:// is not known; give a path, or {known}")
    return scheme


def _open_filesystem(scheme: str, url: str) -> tuple[Any, str]:
    options = {"client_kwargs": {"trust_env": True}} if scheme.startswith("http") else {}
    try:
        # A cache would hide what has changed since, in the store or in the environment.
        filesystem, path = fsspec.url_to_fs(
            url, use_listings_cache=False, skip_instance_cache=True, **options
        )
    except ImportError as error:
        extra = EXTRAS.get(scheme)
        remedy = f"pip install 'clickmill[{extra}]'" if extra else "install it"
        raise ConfigError(f"data.source: {scheme}:// needs a package ({error}): {remedy}") from None
    except Exception as error:  # each kind of store raises its own exceptions
        raise _refusal(scheme, url, error) or _unreachable(scheme, url, error) from None
    return filesystem, path


def _tables_above(filesystem: Any, scheme: str, folder: str, num_outer: int) -> Iterator[str]:
    """Yield the folders by which a table that a folder is a partition of records its files."""
    for _ in range(num_outer):
        folder = folder.rpartition("/")[0]
        for name in TABLE_FOLDERS:
            if _ask(scheme, folder, filesystem.exists, f"{folder}/{name}"):
                yield f"{folder}/{name}/"


def _split_pattern(path: str) -> str:
    """Return the folder before the first part of a path that is a pattern."""
    parts = path.split("/")
    first = next(k for k, part in enumerate(parts) if PATTERN.search(part))
    return "/".join(parts[:first])


def _ask(scheme: str, path: str, question: Callable[..., T], *args: Any, **options: Any) -> T:
    """Ask a store, again if it does not answer."""
    for num_failures in range(1, MAX_FAILURES + 1):
        try:
            return question(*args, **options)
        except Exception as error:  # each kind of store raises its own exceptions
            if refusal := _refusal(scheme, path, error):
                raise refusal from None
            if num_failures == MAX_FAILURES or not is_worth_retrying(error):
                raise _unreachable(scheme, path, error) from None
        time.sleep(RETRY_DELAY_S * 2**num_failures)
    raise AssertionError


def _refusal(scheme: str, path: str, error: Exception) -> Exception | None:
    """Return the error to raise if a store has refused a request; None if it may succeed later."""
    if scheme.startswith("http") and isinstance(error.__cause__, Exception):
        error = error.__cause__  # fsspec says of any error of HTTP that there is no such file
    shown, status = _shown(scheme, path), getattr(error, "status", None)
    if isinstance(error, FileNotFoundError) or status in STATUS_MISSING:
        return DataError(f"nothing found at {shown}; correct it, or wait for the file")
    is_credential = "Credential" in type(error).__name__
    if isinstance(error, PermissionError) or status in STATUS_REFUSED or is_credential:
        return ConfigError(
            f"data.source: access to {shown} is refused ({_reason(error)}); set the"
            f" credentials in the environment: {CREDENTIALS[scheme]}"
        )
    return None


def _unreachable(scheme: str, path: str, error: Exception) -> ConnectionError:
    return ConnectionError(
        f"data.source: {_shown(scheme, path)} cannot be read ({_reason(error)}); run again"
        " when the store answers"
    )


def _shown(scheme: str, path: str) -> str:
    return printable(mask_passwords(path if "://" in path else f"{scheme}://{path.lstrip('/')}"))


def _reason(error: Exception) -> str:
    return printable(mask_passwords(first_line(error)))
