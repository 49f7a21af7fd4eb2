"""What is known of a night: night.json in the commit that its tag night/NNNN names."""

import json
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self

from common.files import write_json
from flows.nightly.git import contents, git, tags

RECORD = Path("night.json")
PRODUCTION = Path("artifacts/production")  # a link to the bundle that serves
NIGHT = "night/"
Outcome = Literal["promoted", "kept", "nothing new"]
# Of a night's flow run, by which alerts know how it ended.
STATES: dict[Outcome, str] = {"promoted": "Promoted", "kept": "Kept", "nothing new": "NothingNew"}


@dataclass(frozen=True)
class Night:
    """A night that came to an end.

    number: from 1. until: the newest log file. log: SHA-256 of each log file, by name. arrivals: what came since the night before
    (flows/nightly/log_changes.py). base: the night whose artifacts it went on from. version, champion: of bundles. decision: decision.json.
    seconds: of the whole, and of each task. data: figures of the newest day (flows/nightly/log_changes.py), where something was new and its
    rows came to be counted.
    """

    number: int
    until: str
    outcome: Outcome
    reasons: list[str]
    log: dict[str, str]
    arrivals: dict[str, list[str]]
    base: int | None
    version: str | None
    champion: str | None
    decision: dict[str, Any] | None
    warnings: list[str]
    started: str
    seconds: float
    tasks: dict[str, float]
    data: dict[str, Any] | None

    @property
    def tag(self) -> str:
        return f"{NIGHT}{self.number:04d}"

    @property
    def model(self) -> str | None:
        """Its model's version by GTO's conventions: the night's number."""
        return f"v{self.number}.0.0" if self.version else None

    @property
    def when(self) -> datetime:
        return datetime.fromisoformat(self.started)

    @property
    def headline(self) -> str:
        """One line."""
        kept = "kept the production model" if self.champion else "promoted none"
        names = {"promoted": f"promoted {self.model}", "kept": kept, "nothing new": "nothing new"}
        return f"Night {self.number}, {self.until}: {names[self.outcome]}" + (
            f": {self.reasons[0]}" if self.reasons else ""
        )

    def write(self, root: Path) -> None:
        write_json(root / RECORD, asdict(self))

    @classmethod
    def at(cls, root: Path, tag: str) -> Self:
        return cls.parse(git(root, "show", f"{tag}:{RECORD}"))

    @classmethod
    def parse(cls, text: str | bytes) -> Self:
        """A record; what a later version wrote besides is passed over."""
        value = json.loads(text)
        return cls(**{one.name: value[one.name] for one in fields(cls)})


def nights(root: Path) -> list[Night]:
    """All that came to an end, in the order in which they ran."""
    return [
        Night.parse(text)
        for text in contents(root, [f"{tag}:{RECORD}" for tag in tags(root, f"{NIGHT}*")])
    ]
