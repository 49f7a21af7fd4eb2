"""The journal of a study, from which it is resumed: a line of JSON for each finished trial.

A line is on the disk before the next trial is chosen from it. It has the CRC-32 of its contents. A
last line without its end, which a kill can leave, is removed, and its trial runs again; any other
damage is an error.
"""

import json
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from common.config.base import NotNegative, Strict
from common.config.loading import check_json
from common.files import DataError, replaced
from training.tune.outcome import Outcome

M = TypeVar("M", bound=BaseModel)
CHECKSUM = "crc32"
REMEDY = "remove it to run all of them again"


class Trial(Strict):
    """A finished trial.

    Attributes:
        number: Its number, from 0.
        values: Its value of each key of the space.
        outcome: What it has reached.
        notes: What the sampler keeps of it.
    """

    number: NotNegative
    values: dict[str, Any]
    outcome: Outcome
    notes: dict[str, Any]


class Confirmation(Strict):
    """A training for the confirmation of a trial.

    Attributes:
        trial: The number of the trial; None for the present params.yaml.
        seed: The value of train.seed.
        outcome: What it has reached.
    """

    trial: NotNegative | None
    seed: NotNegative
    outcome: Outcome


class Journal(Generic[M]):
    """A file of JSON lines, each an entry of the same model.

    Args:
        path: The file.
        model: The model of an entry.
    """

    def __init__(self, path: Path, model: type[M]) -> None:
        self.path, self.model = path, model

    def read(self) -> list[M]:
        """Return all entries, without a last line that has no end. The file is not changed.

        Raises:
            DataError: A line is damaged.
        """
        if not self.path.exists():
            return []
        *lines, _ = self.path.read_bytes().split(b"\n")
        return [self._parse(number, line) for number, line in enumerate(lines, 1)]

    def remove_half_line(self) -> None:
        """Remove a last line without its end. The caller is the only one that writes."""
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        with self.path.open("r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)

    def append(self, entry: M) -> None:
        """Write an entry, which is on the disk when this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(_line(entry))
            file.flush()
            os.fsync(file.fileno())

    def rewrite(self, entries: Iterable[M]) -> None:
        """Replace all entries."""
        with replaced(self.path) as scratch:
            scratch.write_bytes(b"".join(map(_line, entries)))

    def _parse(self, number: int, line: bytes) -> M:
        where = f"{self.path}: line {number}"
        try:
            values = json.loads(line)
            is_whole = values.pop(CHECKSUM) == _checksum(values)
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            is_whole = False
        if not is_whole:
            raise DataError(f"{where} is damaged; {REMEDY}")
        return check_json(self.model, values, Path(where), REMEDY)


def _line(entry: BaseModel) -> bytes:
    values = entry.model_dump(mode="json")
    return json.dumps({**values, CHECKSUM: _checksum(values)}).encode() + b"\n"


def _checksum(values: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(values).encode()):08x}"
