"""The report of a study: one HTML page that needs no other file."""

import json
from pathlib import Path
from typing import Any

from markupsafe import Markup

from common.checked_json import write_checked_json
from common.config.loading import ConfigError
from common.files import replaced
from common.html.page import page_environment
from common.layout import PARAMS
from training.tune.adopt import diff_of
from training.tune.choice import Candidate, finished, result_of
from training.tune.journal import Trial
from training.tune.plots import COST_NAMES, draw_course, draw_front
from training.tune.study_files import REPORT, SUMMARY
from training.tune.summary import Summary

TEMPLATES = Path(__file__).parent / "templates"
COSTS = tuple(COST_NAMES)


def write_report(folder: Path, summary: Summary, root: Path) -> Path:
    """Write report.html and summary.json into a study's folder, and return the report's path."""
    diff = recommended_diff(summary, root)
    write_checked_json(folder / SUMMARY, summary_json(summary, diff))
    path = folder / REPORT
    with replaced(path) as scratch:
        scratch.write_text(render(summary, diff), encoding="utf-8")
    return path


def render(summary: Summary, diff: str | None) -> str:
    """Return the report as HTML. The same study gives the same bytes.

    Args:
        summary: What the study has found.
        diff: The change of params.yaml that is recommended, if one is.
    """
    environment = page_environment(TEMPLATES)
    environment.filters.update(value=value_text, mean=_mean)
    draws = {"front": draw_front, "course": draw_course} if finished(summary.trials) else {}
    return environment.get_template("tune.html.j2").render(
        study=summary,
        cost_names=COST_NAMES,
        costs=COSTS,
        latencies={one.trial: one for one in summary.latencies},
        recommended=summary.recommended,
        present=summary.candidates[0] if summary.candidates else None,
        diff=diff,
        rows=[(one, one.outcome.result) for one in summary.trials],
        front=[(one, result_of(one)) for one in summary.front],
        figures={
            name: Markup(draw(summary))  # noqa: S704 - our own SVG, whose texts are escaped
            for name, draw in draws.items()
        },
    )


def recommended_diff(summary: Summary, root: Path) -> str | None:
    """Return the change of params.yaml that adopts the recommended trial; None without one.

    If it cannot be made, the reason takes its place.
    """
    best = summary.recommended
    if best is None:
        return None
    try:
        return diff_of(root / PARAMS, summary.changes(best))
    except ConfigError as error:
        return str(error)


def summary_json(summary: Summary, diff: str | None) -> dict[str, Any]:
    """Return the contents of summary.json, for other programs."""
    best = summary.recommended
    return {
        "study": summary.key,
        "num_trials": len(summary.trials),
        "num_stopped": summary.num_stopped,
        "num_failed": len(summary.failed),
        "rows_trained": summary.num_rows,
        "objectives": summary.tune.objectives,
        "front": [_trial_json(one) for one in summary.front],
        "confirmed": [_candidate_json(one) for one in summary.candidates],
        "importance": summary.importance,
        "recommended": None if best is None else best.trial,
        "diff": diff,
    }


def value_text(value: Any) -> str:
    """Return a parameter's value as it is shown in a table."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return value if isinstance(value, str) else json.dumps(value)


def _trial_json(trial: Trial) -> dict[str, Any]:
    result = result_of(trial)
    costs = {name: getattr(result, name) for name in COSTS}
    return {
        "trial": trial.number,
        "values": trial.values,
        "logloss": result.logloss,
        "auc": result.auc,
        **costs,
    }


def _candidate_json(one: Candidate) -> dict[str, Any]:
    if one.error:
        return {"trial": one.trial, "error": one.error}
    return {
        "trial": one.trial,
        "logloss": one.logloss,
        "spread": one.spread,
        "auc": one.auc,
        "loglosses": list(one.loglosses),
        "costs": dict(one.costs),
        "verdict": one.verdict,
    }


def _mean(candidate: Candidate) -> str:
    return f"{candidate.logloss:.5f} ± {candidate.spread:.5f}"
