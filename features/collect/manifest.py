"""The list of the log files in artifacts/raw, by which later runs see what has changed."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from common.artifact import Artifact, DamageError, ListedFile, write_manifest
from features.schema.schema import Partitions


@dataclass(frozen=True)
class RawFile:
    """A log file in artifacts/raw.

    Attributes:
        name: Its path in artifacts/raw, with `/`: its path relative to data.source.
        listed: Its size and checksums.
        day: The day that its folders name; None if they name none, and the file is a day.
        partitions: The values of its partitions that are columns of the schema.
        fingerprint: A hash of the object's URL and version, for a log from a store; else None.
    """

    name: str
    listed: ListedFile
    day: str | None = None
    partitions: Partitions = field(default_factory=dict)
    fingerprint: str | None = None

    @property
    def bytes(self) -> int:
        """Its size in bytes."""
        return self.listed.bytes

    @property
    def sha256(self) -> str:
        """Its SHA-256, in hex."""
        return self.listed.sha256

    @property
    def day_name(self) -> str:
        """The name of its day."""
        return self.day or self.name


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

    @classmethod
    def read(cls, raw: Path) -> Self:
        """Read the manifest in a folder.

        Raises:
            DataError: There is none, or it is damaged.
        """
        artifact = Artifact.open(raw)
        try:
            files = [
                RawFile(listed=artifact.files[log["name"]], **log) for log in artifact.about["logs"]
            ]
        except TypeError:  # each log is a name
            raise DamageError(
                artifact.manifest_path, "is from another version of clickmill"
            ) from None
        return cls(artifact.about["schema"], files, artifact.about["recipe"])

    def write(self, raw: Path) -> None:
        """Write the manifest to a folder."""
        logs = [
            {
                "name": file.name,
                "day": file.day,
                "partitions": dict(file.partitions),
                "fingerprint": file.fingerprint,
            }
            for file in self.files
        ]
        write_manifest(
            raw,
            {"schema": self.schema, "logs": logs, "recipe": self.recipe},
            {file.name: file.listed for file in self.files},
        )
