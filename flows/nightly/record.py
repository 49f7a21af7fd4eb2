"""The record of a nightly run: the file night.json in the commit that the tag night/NNNN names."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from common.bundle_layout import VERSION_DIGITS
from common.config.base import NotNegative, Positive
from common.config.loading import check_json, shorten
from common.files import DataError, write_json
from common.printable import printable
from training.promotion.compared_metrics import ComparedMetrics, Number
from training.served.figures import ServedFigures

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


# The remedy for a damaged record.
REMEDY = (
    "fetch its tag from another clone (git fetch --force REMOTE tag {tag}), "
    "or delete it (git tag --delete {tag})"
)
FIRST_YEAR, LAST_YEAR = 1970, 9000  # of a time; times near year 1 or 9999 have no time in UTC


def _check_year(at: datetime) -> datetime:
    if not FIRST_YEAR <= at.year <= LAST_YEAR:
        raise ValueError(f"the year is not between {FIRST_YEAR} and {LAST_YEAR} (found {at.year})")
    return at.astimezone(UTC)


Version = Annotated[str, Field(pattern=rf"^[0-9a-f]{{{VERSION_DIGITS}}}$")]
Seconds = Annotated[float, Field(ge=0, le=1e9)]
Time = Annotated[AwareDatetime, AfterValidator(_check_year)]


class Recorded(BaseModel):
    """A part of a record. Unknown keys are ignored, because a later version may write more."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Check(Recorded):
    """The result of a check (training/promotion/checks.py)."""

    name: str
    passed: bool
    message: str


class Metrics(ComparedMetrics):
    """A model's version and its metrics on the test rows."""

    version: Version
    num_rows: NotNegative


class Difference(Recorded):
    """The difference of a metric between challenger and champion, with its interval."""

    value: Number
    low: Number
    high: Number


class Decision(Recorded):
    """The keys of decision.json that a record needs (training/promotion/decide.py)."""

    checks: list[Check]
    challenger: Metrics
    champion: Metrics | None
    difference: dict[str, Difference]


class NewDecision(Decision):
    """The keys of decision.json that a run needs when it records the decision."""

    promote: bool
    reasons: list[str]


class Largest(Recorded):
    """The column with the largest value of a figure, and that value."""

    column: str
    value: Number


class NewestDay(Recorded):
    """The figures of the newest day (log_changes.py)."""

    name: str
    num_rows: NotNegative
    num_bad_rows: NotNegative
    label_rate: Number | None
    drift: Largest | None
    unseen: Largest | None
    missing: Largest | None


def run_tag(number: int) -> str:
    """Return the tag of a nightly run, such as night/0007."""
    return f"{RUN_TAG_PREFIX}{number:04d}"


class NightlyRun(Recorded):
    """A finished nightly run.

    Attributes:
        number: The number of the run, from 1.
        until: The name of the newest day: its log file, or the day that folders name.
        outcome: What became of the run's model or data.
        reasons: Why the outcome is "rejected".
        log_files: SHA-256 of each log file, by name; or of all files of a day, by the day.
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
        served: Figures of the traffic that was served since the run before
            (training/served/figures.py), without those of each column. None if `serve.request_log`
            is null or they could not be computed; runs of earlier versions have none.
    """

    number: Positive
    until: str
    outcome: Outcome
    reasons: list[str]
    log_files: dict[str, str]
    log_changes: dict[str, list[str]]
    base: Positive | None
    version: Version | None
    champion: Version | None
    decision: dict[str, Any] | None
    warnings: list[str]
    started: Time
    seconds: Seconds
    stage_seconds: dict[str, Seconds]
    newest_day: dict[str, Any] | None
    served: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _translate_former_names(cls, value: Any) -> Any:
        """Accept a record that an earlier version wrote."""
        return _with_present_names(value)

    @property
    def tag(self) -> str:
        """The tag of the run's commit."""
        return run_tag(self.number)

    @property
    def model(self) -> str | None:
        """The name of the run's model by GTO's conventions: v7.0.0 is the model of run 7."""
        return f"v{self.number}.0.0" if self.version else None

    @property
    def served_figures(self) -> ServedFigures | None:
        """The figures of served traffic, with names for what is computed from them."""
        return ServedFigures.model_validate(self.served) if self.served else None

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


class Parts(Recorded):
    """The parts of a record that NightlyRun keeps as they are in the JSON."""

    decision: Decision | None
    newest_day: NewestDay | None
    served: ServedFigures | None = None


def read_record(content: bytes, tag: str) -> NightlyRun:
    """Read the record in the commit of a run's tag, and check every value that is used.

    Raises:
        DataError: The record is damaged. The message names the tag, the key, the value and what to
            do.
    """
    name, remedy = Path(f"{tag}:{RECORD}"), REMEDY.format(tag=tag)
    try:
        value = _with_present_names(json.loads(content))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} is not JSON ({error}); {remedy}") from None
    run = check_json(NightlyRun, value, name, remedy)
    check_json(Parts, value, name, remedy)
    if (run.version is None) != (run.decision is None):
        raise DataError(
            f"{name}: decision: a run with a model has a decision, and only such a run "
            f"(version {shorten(run.version)}, decision {shorten(run.decision)}); {remedy}"
        )
    if run.tag != tag:
        raise DataError(
            f"{name}: number: it is the record of another nightly run "
            f"(found {shorten(run.number)}); {remedy}"
        )
    return run


def _with_present_names(value: Any) -> Any:
    """Return a record with today's names; a part that is damaged is left as it is."""
    if not isinstance(value, Mapping):
        return value
    record = {FORMER_FIELDS.get(name, name): content for name, content in value.items()}
    outcome, changes, decision = map(record.get, ("outcome", "log_changes", "decision"))
    if isinstance(outcome, str):
        record["outcome"] = FORMER_OUTCOMES.get(outcome, outcome)
    if isinstance(changes, Mapping):
        record["log_changes"] = {
            FORMER_LOG_CHANGES.get(kind, kind): names for kind, names in changes.items()
        }
    if isinstance(decision, Mapping) and isinstance(decision.get("checks"), list):
        checks = [
            {FORMER_CHECK_FIELDS.get(name, name): content for name, content in check.items()}
            if isinstance(check, Mapping)
            else check
            for check in decision["checks"]
        ]
        record["decision"] = {**decision, "checks": checks}
    return record
