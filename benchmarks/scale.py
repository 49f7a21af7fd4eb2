"""Time per row and peak memory of the stages up to features, for short and long logs.

    python benchmarks/scale.py [--rows 2000000 20000000 40000000]

Each stage runs in its own process. The table has for each size and stage: seconds, microseconds per
row and the peak resident memory. The generated log has about 250 bytes per row; artifacts take
another 90.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common.config.params import Params, load_params

STAGES = ("collect", "ingest", "features")
STAGE = """
import json, resource, sys, time
from pathlib import Path
from features.dataset.stage import build_features
from features.collect.stage import collect
from features.ingest.stage import ingest
from common.config.params import Params
stage = {"collect": collect, "ingest": ingest, "features": build_features}[sys.argv[1]]
params, root = Params.model_validate_json(sys.argv[2]), Path(sys.argv[3])
started = time.perf_counter()
stage(params, root)
seconds = time.perf_counter() - started
print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""


def measure(stage: str, params: Params, root: Path) -> tuple[float, float]:
    """Run a stage in its own process and return its seconds and its peak memory in MiB."""
    command = [sys.executable, "-c", STAGE, stage, params.model_dump_json(by_alias=True), str(root)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    seconds, mib = json.loads(output.splitlines()[-1])
    return seconds, mib


def main() -> None:
    """Measure all stages and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows",
        type=int,
        nargs="+",
        default=[2_000_000, 20_000_000, 40_000_000],
        help="numbers of rows",
    )
    values = load_params().model_dump(by_alias=True)
    values["data"]["source"] = "sample"
    print(f"{'rows':>12} {'stage':>9} {'seconds':>8} {'us/row':>7} {'MiB':>6}")
    for num_rows in parser.parse_args().rows:
        values["sample"]["num_rows"] = num_rows
        per_row = 0.0
        with tempfile.TemporaryDirectory() as scratch:
            for stage in STAGES:
                seconds, mib = measure(stage, Params.model_validate(values), Path(scratch))
                print(
                    f"{num_rows:>12,} {stage:>9} {seconds:>8.1f}"
                    f" {1e6 * seconds / num_rows:>7.2f} {mib:>6,.0f}",
                    flush=True,
                )
                if stage != "collect":
                    per_row += 1e6 * seconds / num_rows
        print(f"{num_rows:>12,} ingest and features: {per_row:.2f} us/row", flush=True)


if __name__ == "__main__":
    main()
