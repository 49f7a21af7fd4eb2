"""The figures of served traffic, as JSON and the record of a nightly run have them.

A record is read without Polars or torch, so this module imports neither.
"""

from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from common.config.base import Fraction, NotNegative

Number = Annotated[float, Field(ge=-1e9, le=1e9)]
MIN_JOINED_SHARE = 0.5  # below it, a warning says that keys may not be those of the log


class _Figures(BaseModel):
    """Values that are read again. Unknown keys are ignored: a later version may write more."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class LargestValue(_Figures):
    """The column with the largest value of a figure, and that value."""

    column: str
    value: Number


class ColumnFigures(_Figures):
    """The figures of one feature of a served model.

    Attributes:
        name: The feature.
        missing: The share of served rows in which a categorical feature is missing.
        unseen: The share of served rows with an unseen value.
        train_missing: The same share of the training rows.
        train_unseen: The same share of the training rows.
        drift: The PSI of served rows against training rows (features/quality/drift.py).
        skew: The share of the joined rows whose served feature differs from what the feature state
            of the same model makes of the row in the log.
    """

    name: str
    missing: Fraction | None
    unseen: Fraction | None
    train_missing: Fraction | None
    train_unseen: Fraction | None
    drift: Number | None
    skew: Fraction | None


class JoinedMetrics(_Figures):
    """The metrics of the rows that were joined with their labels (training/evaluation/metrics.py).

    Attributes:
        auc: None if the rows have one class only.
        logloss: In nats.
        ece: Expected calibration error.
        calibration_ratio: Predicted clicks / observed clicks; None without a click.
        calibration_ratio_low: The lower end of its 95 % interval.
        calibration_ratio_high: The upper end.
        label_rate: The click rate.
        mean_score: The mean score of these rows.
    """

    auc: Number | None
    logloss: Number
    ece: Number
    calibration_ratio: Number | None
    calibration_ratio_low: Number | None
    calibration_ratio_high: Number | None
    label_rate: Fraction
    mean_score: Fraction


class VersionFigures(_Figures):
    """The figures of the rows that one model version scored in one role.

    Attributes:
        model: The name under which it is served.
        version: The version of the served model.
        role: `answer`, or `shadow`.
        num_rows: The number of rows in the request log.
        num_served: An estimate of the number of rows served: each logged row stands for as many as
            the sampling fraction of its file says.
        mean_score: Their mean score.
        num_compared: The number of rows with a key of their own that were looked for in the log.
        num_without_key: The number of rows without a key, which are not compared.
        num_repeated: The number of rows whose key a later row of the same version has; only the
            last row of a key is compared.
        num_joined: The number of compared rows that have a label.
        num_ambiguous: The number of compared rows whose key several rows of the log have.
        metrics: The metrics of the joined rows; None without such rows.
        columns: The figures of each feature; none in a record, which has only the largest ones.
        drift: The largest drift.
        unseen: The largest rise of the share of unseen values above that of the training rows.
        skew: The largest skew that is not 0.
        notes: Why a figure is missing.
    """

    model: str
    version: str
    role: str
    num_rows: NotNegative
    num_served: NotNegative
    mean_score: Fraction
    num_compared: NotNegative
    num_without_key: NotNegative
    num_repeated: NotNegative
    num_joined: NotNegative
    num_ambiguous: NotNegative
    metrics: JoinedMetrics | None
    columns: list[ColumnFigures] = Field(default_factory=list)
    drift: LargestValue | None
    unseen: LargestValue | None
    skew: LargestValue | None
    notes: list[str]

    @property
    def joined_share(self) -> float | None:
        """The joined rows as a share of the compared ones; None if no row is compared."""
        return self.num_joined / self.num_compared if self.num_compared else None

    @property
    def title(self) -> str:
        """The model, as a report names it."""
        shadow = "" if self.role == "answer" else f" ({self.role})"
        return f"{self.model} {self.version}{shadow}"


class ServedFigures(_Figures):
    """The figures of served traffic.

    Attributes:
        since: When the first row of the request log that was read was scored; None without rows.
        until: When the last one was scored.
        num_files: The number of files of the request log.
        damaged: Why another file of it was not read, or not to its end.
        key: The column of the log that has the keys.
        logs: The names of the logs with the labels.
        num_log_rows: The number of their rows.
        num_bad_rows: The number of their malformed rows.
        num_log_rows_without_key: The number of their rows without a key.
        versions: The figures of each version, those with most rows first, answers before shadows.
    """

    since: AwareDatetime | None
    until: AwareDatetime | None
    num_files: NotNegative
    damaged: list[str]
    key: str
    logs: list[str]
    num_log_rows: NotNegative
    num_bad_rows: NotNegative
    num_log_rows_without_key: NotNegative
    versions: list[VersionFigures]

    @property
    def main(self) -> VersionFigures | None:
        """The version that gave the most answers; None if none was logged."""
        return next((one for one in self.versions if one.role == "answer"), None)

    @property
    def warnings(self) -> list[str]:
        """The warnings, one line each."""
        lines = [f"request log: {line}" for line in self.damaged]
        for one in self.versions:
            share = one.joined_share
            if share is not None and share < MIN_JOINED_SHARE:
                lines.append(
                    f"{one.title}: only {one.num_joined:,} of {one.num_compared:,} served rows have"
                    f" a label; is {self.key} the key of both, and are the labels complete?"
                )
            if one.skew:
                lines.append(
                    f"{one.title}: {one.skew.column} was served with another value than the log"
                    f" gives in {one.skew.value:.2%} of the joined rows: the client does not send"
                    " what it logs"
                )
            lines += [f"{one.title}: {note}" for note in one.notes]
        return lines
