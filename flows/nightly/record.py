"""The record of a nightly run: the file night.json in the commit that the tag night/NNNN names."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from common.files import write_json
from common.printable import printable

RECORD = Path("night.json")
RUN_TAG_PREFIX = "night/"
PRODUCTION = Path("artifacts/production")  # a link to the bundle in production
Outcome = Literal["promoted", "rejected", "nothing new"]

# The name of the flow run's final state in Prefect, by which alerts recognise the outcome.
STATES: dict[Outcome, str] = {
    "promoted": "Promoted",
    "rejected": "Rejected",
    "nothing new": "NothingNew",
}

# What earlier versions called these, in the records that they wrote.
FORMER_FIELDS = {
    "arrivals": "log_changes",
    "data": "newest_day",
    "log": "log_files",
    "tasks": "stage_seconds",
}
FORMER_OUTCOMES = {"kept": "rejected"}
FORMER_LOG_CHANGES = {"gone": "removed", "twice": "duplicate"}
FORMER_CHECK_FIELDS = {"found": "message"}


def run_tag(number: int) -> str:
    """Return the tag of a nightly run, such as night/0007."""
    return f"{RUN_TAG_PREFIX}{number:04d}"


class NightlyRun(BaseModel):
    """A finished nightly run.

    Attributes:
        number: The number of the run, from 1.
        until: The name of the newest log file.
        outcome: What became of the run's model or data.
        reasons: Why the outcome is "rejected".
        log_files: SHA-256 of each log file, by name.
        log_changes: Names of changed log files, by kind of change (log_changes.py).
        base: The number of the run whose artifacts this one began with.
        version: The model version of the bundle that the run made, if it made one.
        champion: The model version in production when the run began.
        decision: The contents of decision.json.
        warnings: Warnings about the data, and about how the model was trained.
        started: When the run began.
        seconds: The duration of the run.
        stage_seconds: The duration of each stage.
        newest_day: Figures of the newest day's data (log_changes.py), if the day is new and its
            rows were counted.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")  # a later version may write more

    number: int
    until: str
    outcome: Outcome
    reasons: list[str]
    log_files: dict[str, str]
    log_changes: dict[str, list[str]]
    base: int | None
    version: str | None
    champion: str | None
    decision: dict[str, Any] | None
    warnings: list[str]
    started: datetime
    seconds: float
    stage_seconds: dict[str, float]
    newest_day: dict[str, Any] | None

    @model_validator(mode="before")
    @classmethod
    def _translate_former_names(cls, value: Any) -> Any:
        """Accept a record that an earlier version wrote."""
        if not isinstance(value, Mapping):
            return value
        record = {FORMER_FIELDS.get(name, name): content for name, content in value.items()}
        record["outcome"] = FORMER_OUTCOMES.get(record["outcome"], record["outcome"])
        record["log_changes"] = {
            FORMER_LOG_CHANGES.get(kind, kind): names
            for kind, names in record["log_changes"].items()
        }
        if record["decision"]:
            checks = [
                {FORMER_CHECK_FIELDS.get(name, name): content for name, content in check.items()}
                for check in record["decision"]["checks"]
            ]
            record["decision"] = {**record["decision"], "checks": checks}
        return record

    @property
    def tag(self) -> str:
        """The tag of the run's commit."""
        return run_tag(self.number)

    @property
    def model(self) -> str | None:
        """The name of the run's model by GTO's conventions: v7.0.0 is the model of run 7."""
        return f"v{self.number}.0.0" if self.version else None

    @property
    def headline(self) -> str:
        """The run and its outcome, in one line."""
        outcome = f"promoted {self.model}" if self.outcome == "promoted" else self.outcome
        first_reason = self.reasons[0].partition("\n")[0] if self.reasons else ""
        reason = f": {first_reason}" if first_reason else ""
        return printable(f"Nightly run {self.number}, {self.until}: {outcome}{reason}")

    def write(self, root: Path) -> None:
        """Write the record to night.json in root."""
        write_json(root / RECORD, self.model_dump(mode="json"))
