"""The results of a run, for the terminal and for Prefect's artifacts, read from DVC's artifacts."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from common.artifact import Artifact
from common.bundle_layout import HISTORY, MODEL, manifest_in, version_of
from common.config.loading import read_json_as
from common.layout import EVALUATION, FEATURES
from training.evaluation.metrics import skill_warnings
from training.kernels.advice import as_text, what_would_be_faster

REPORT = EVALUATION / "report.html"
COLUMNS = {"auc": "AUC", "logloss": "logloss", "normalized_entropy": "normalised entropy"}
SPLITS = ("valid", "test")
RERUN = "remove it and run the train stage again"
CURVE = ("member", "step", "loss", "accuracy", "auc")


class _Timing(BaseModel):
    """The timing of a stage, as the page of results shows it."""

    rows_per_s: float


class _Manifest(BaseModel):
    """The part of a bundle's manifest that the page of results shows."""

    operators: dict[str, str] = {}


@dataclass(frozen=True)
class Results:
    """The figures of a finished run.

    Attributes:
        num_rows: Rows of the log, without malformed ones.
        num_bad_rows: Malformed rows.
        metrics: Split -> metric -> value; None where the split does not define it.
        samples_per_s: Training rows per second; None where this checkout did not train the model.
        version: The model version.
        report: The path of the HTML report.
        operators: Operator -> its implementation in training; empty after training on a GPU.
    """

    num_rows: int
    num_bad_rows: int
    metrics: dict[str, dict[str, float | None]]
    samples_per_s: float | None
    version: str
    report: Path
    operators: dict[str, str]

    @classmethod
    def read(cls, root: Path) -> "Results":
        """Read the results from root/artifacts.

        Raises:
            DataError: An artifact is missing or damaged.
        """
        data = Artifact.open(root / FEATURES).read_json("data.json")
        timing = root / "runs/timings/train.json"
        return cls(
            num_rows=data["num_rows"],
            num_bad_rows=data["num_bad_rows"],
            metrics=Artifact.open(root / EVALUATION).read_json("metrics.json"),
            samples_per_s=read_json_as(_Timing, timing, RERUN).rows_per_s
            if timing.exists()
            else None,
            version=version_of(root / MODEL),
            report=(root / REPORT).absolute(),
            operators=read_json_as(_Manifest, manifest_in(root / MODEL), RERUN).operators,
        )

    @property
    def facts(self) -> dict[str, str]:
        """The figures that are not metrics, title -> formatted value."""
        speed = "trained elsewhere" if self.samples_per_s is None else f"{self.samples_per_s:,.0f}"
        return {
            "rows": f"{self.num_rows:,}",
            "bad rows": f"{self.num_bad_rows:,}",
            "samples/s": speed,
            "model version": self.version,
        }

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The metrics, one row for each split; None where a split has one class only."""
        return [
            {
                "split": split,
                **{title: _rounded(self.metrics[split][name]) for name, title in COLUMNS.items()},
            }
            for split in SPLITS
        ]


def show(results: Results, headline: str) -> None:
    """Print the results as two small tables, then warnings and the path of the report."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"\n{headline}\n")
    for rows in ([results.facts], results.rows):
        table = Table(*rows[0], box=None, pad_edge=False)
        for row in rows:
            table.add_row(*map(str, row.values()))
        console.print(table, "")
    for line in skill_warnings({split: results.metrics[split] for split in SPLITS}):
        console.print(f"Warning: {line}\n")
    if results.operators:
        console.print(f"Trained with {as_text(results.operators)}.")
    if advice := what_would_be_faster(results.operators):
        console.print(advice)
    console.print(f"Report: {results.report}")


def markdown(results: Results, root: Path) -> str:
    """Format the results, the path of the report and the validation curve as Markdown."""
    facts = _table([results.facts])
    metrics = _table(results.rows)
    with (root / MODEL / HISTORY).open(newline="", encoding="utf-8") as file:
        curve = _table(
            [
                {name: row[name] for name in CURVE if name in row}
                for row in csv.DictReader(file)
                if row["split"] == "valid"
            ]
        )
    paragraphs = [
        f"# Model {results.version}",
        facts,
        metrics,
        f"Report: `{results.report}`",
        "## Validation",
        curve,
    ]
    return "\n\n".join(paragraphs) + "\n"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)


def _table(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "none"
    cells = [list(rows[0]), ["---"] * len(rows[0]), *[list(row.values()) for row in rows]]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in cells)
