"""The time of a nightly run as the history grows, by stage, from scratch and from production.

    python benchmarks/nights.py --rows 100000 --days 12 [--only "from production"]

Every day is a log file of --rows generated rows. The first nightly run has two days; each later one
has one more. The runs are made in a temporary repository by `clickmill nightly backfill`, as in
docs/guides/nightly-runs.md.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from common.config.params import load_params
from common.progress import Progress
from features.sample.generate import write_sample
from features.schema.schema import load_schema
from flows.nightly.clone import set_param
from flows.nightly.repository import NightlyRepository

ROOT = Path(__file__).parents[1]
STAGES = ["collect", "ingest", "features", "train", "evaluate", "export"]
VARIANTS: dict[str, dict[str, object]] = {
    "from scratch": {},
    "from production": {
        "warm_start_from": "artifacts/production",
        "last_days": 1,
        "epochs": 1,
        "reset_embeddings_each_epoch": False,
    },
}


def main() -> None:
    """Run the nightly runs of each variant and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000, help="rows of a day")
    parser.add_argument("--days", type=int, default=12, help="number of days")
    parser.add_argument("--only", choices=VARIANTS, help="only this variant of the training")
    options = parser.parse_args()
    with TemporaryDirectory() as directory:
        write_days(Path(directory) / "logs", options.rows, options.days)
        print(
            f"| {options.rows:,} rows a day | nightly run | days before | "
            + " | ".join((*STAGES, "all"))
            + " |"
        )
        print("|---" * 9 + "|")
        for name in [options.only] if options.only else VARIANTS:
            root = make_repository(Path(directory) / name.replace(" ", "_"), VARIANTS[name])
            subprocess.run(
                [
                    Path(sys.executable).parent / "clickmill",
                    "nightly",
                    "backfill",
                    "day_01.tsv",
                    f"day_{options.days - 1:02d}.tsv",
                ],
                cwd=root,
                check=True,
                stdout=subprocess.DEVNULL,
            )
            for run in NightlyRepository(root).runs():
                durations = [*(run.stage_seconds[stage] for stage in STAGES), run.seconds]
                seconds = " | ".join(f"{duration:.1f}" for duration in durations)
                days_before = len(run.log_files) - 1
                print(f"| {name} | {run.number} | {days_before} | {seconds} |", flush=True)


def write_days(directory: Path, rows: int, num_days: int) -> None:
    """Write directory/day_NN.tsv for each day."""
    directory.mkdir()
    params = load_params(ROOT / "params.yaml")
    log = directory.with_suffix(".tsv")
    with Progress("sample", rows * num_days, None) as progress:
        write_sample(
            log,
            rows * num_days,
            num_days,
            params.sample.seed,
            load_schema(params.data.schema_name),
            progress,
        )
    with log.open("rb") as lines:
        for day in range(num_days):
            with (directory / f"day_{day:02d}.tsv").open("wb") as file:
                file.writelines(next(lines) for _ in range(rows))


def make_repository(root: Path, train: dict[str, object]) -> Path:
    """Clone the last commit of this repository, with parameters for the log beside it."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(root)], check=True)
    set_param(root, "data", "source", "../logs")
    set_param(root, "features", "fit_days", 1)
    for name, value in train.items():
        set_param(root, "train", name, value)
    for command in (
        ["config", "user.name", "bench"],
        ["config", "user.email", "bench@localhost"],
        ["commit", "-qam", "bench"],
    ):
        subprocess.run(["git", *command], cwd=root, check=True)
    return root


if __name__ == "__main__":
    main()
