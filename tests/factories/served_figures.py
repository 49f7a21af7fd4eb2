"""Figures of served traffic as a record has them."""

from typing import Any

from training.served.figures import JoinedMetrics, LargestValue, ServedFigures, VersionFigures


def make_served(
    version: str = "a" * 12, ratio: float | None = 1.1, drift: float | None = 0.3, **changes: Any
) -> dict[str, Any]:
    """Return the figures of one version; `ratio` is its calibration ratio, None without labels."""
    metrics = JoinedMetrics(
        auc=0.7,
        logloss=0.4567,
        ece=0.01,
        calibration_ratio=ratio,
        calibration_ratio_low=ratio and ratio - 0.1,
        calibration_ratio_high=ratio and ratio + 0.1,
        label_rate=0.3,
        mean_score=0.33,
    )
    values: dict[str, Any] = {
        "model": "shop<1>",
        "version": version,
        "role": "answer",
        "num_rows": 1000,
        "num_served": 10_000,
        "mean_score": 0.33,
        "num_compared": 990,
        "num_without_key": 10,
        "num_repeated": 0,
        "num_joined": 891,
        "num_ambiguous": 0,
        "metrics": metrics if ratio else None,
        "drift": LargestValue(column="site", value=drift) if drift is not None else None,
        "unseen": None,
        "skew": None,
        "notes": [],
    }
    figures = ServedFigures(
        since=None,
        until=None,
        num_files=3,
        damaged=[],
        key="impression",
        logs=["day_3.tsv"],
        num_log_rows=5000,
        num_bad_rows=0,
        num_log_rows_without_key=0,
        versions=[VersionFigures(**(values | changes))],
    )
    return figures.model_dump(mode="json")
