"""The features stage on one machine, and on 1, 2 and 4 workers of a Dask cluster.

    python benchmarks/features_on_workers.py [--rows 2000000 --days 8 --workers 1 2 4 --rounds 3]

All workers run on this machine, each with one thread, after they have imported everything. The
local run uses all cores. The runs take turns. The table has for each run the median of its wall
seconds; for those on workers also the CPU seconds of all jobs of each phase, and what the asking
machine needs: CPU seconds and peak memory. The bytes of all runs are compared.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.config.params import Params, load_params
from common.layout import FEATURES
from common.progress import Progress
from features.collect.stage import collect
from features.ingest.stage import ingest
from features.sample.generate import write_sample
from features.schema.schema import load_schema

RUN = """
import json, sys, time
from collections import defaultdict
from pathlib import Path
from common.config.params import Params
from features.dataset.stage import build_features

address, params, root = sys.argv[1], Params.model_validate_json(sys.argv[2]), Path(sys.argv[3])
if address == "local":
    started_s = time.perf_counter()
    build_features(params, root)
    phases = {}
else:
    from distributed import Client
    from benchmarks.features_on_workers import JobsOnWorkers, warm_up
    from features.distributed.cluster import Cluster
    from features.distributed.exchange import FolderExchange

    client = Client(address)
    client.run(warm_up)
    jobs = JobsOnWorkers(client)
    cluster = Cluster(jobs.run, FolderExchange(root.absolute() / "artifacts/.exchange"))
    started_s, started_cpu_s = time.perf_counter(), time.process_time()
    build_features(params, root, counter=cluster, write=cluster.write_days)
    phases = dict(jobs.cpu_s) | {"here": time.process_time() - started_cpu_s}
seconds = time.perf_counter() - started_s
status = Path("/proc/self/status").read_text()
mib = int(status.split("VmHWM:")[1].split()[0]) / 1024
print(json.dumps({"seconds": seconds, "MiB here": mib, **phases}))
"""
PHASES = ("seconds", "count", "merge", "encode", "here", "MiB here")


class JobsOnWorkers:
    """Gives jobs to Dask's workers, and adds up their CPU time.

    Args:
        client: A client of the cluster.
    """

    def __init__(self, client: Any) -> None:
        self.client = client
        self.cpu_s: dict[str, float] = defaultdict(float)

    def run(self, jobs: Any) -> Iterator[Any]:
        """Yield the results in the order of the jobs."""
        futures = [(job, self.client.submit(run_timed, job, pure=False)) for job in jobs]
        for job, future in futures:
            result, cpu_s = future.result()
            self.cpu_s[job.title.split()[0]] += cpu_s
            yield result


def run_timed(job: Any) -> tuple[Any, float]:
    """Do a job; return its result and the CPU seconds of its process. Runs on a worker."""
    started_s = time.process_time()
    return job.run(), time.process_time() - started_s


def warm_up() -> None:
    """Import what the jobs need. Runs on a worker."""
    import features.distributed.cluster  # noqa: F401


@contextmanager
def cluster_of(num_workers: int, folder: Path) -> Iterator[str]:
    """Start a scheduler and workers of this machine, and yield the address."""
    environment = os.environ | {
        "POLARS_MAX_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    scheduler_file = folder / f"scheduler-{num_workers}.json"
    dask = [sys.executable, "-m"]
    options = ["--no-dashboard", "--scheduler-file", str(scheduler_file)]
    commands = [
        ["distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"],
        *[["distributed.cli.dask_worker", "--nthreads", "1", "--no-nanny"]] * num_workers,
    ]
    with (folder / "dask.log").open("ab") as log:
        processes = [
            subprocess.Popen(
                [*dask, *command, *options], env=environment, cwd=folder, stdout=log, stderr=log
            )
            for command in commands
        ]
    try:
        from distributed import Client

        while not scheduler_file.exists():
            time.sleep(0.1)
        address = json.loads(scheduler_file.read_text())["address"]
        with Client(address) as client:
            client.wait_for_workers(num_workers)
        yield address
    finally:
        for process in processes:
            process.kill()
            process.wait()
        scheduler_file.unlink(missing_ok=True)


def prepare(root: Path, num_rows: int, num_days: int) -> Params:
    """Write a log with a file for each day, and run the stages before features."""
    values = load_params().model_dump(by_alias=True)
    values["data"]["source"] = "days"
    values["features"]["fit_days"] = 2
    params = Params.model_validate(values)
    schema = load_schema(params.data.schema_name)
    with Progress("sample", num_rows, None) as progress:
        write_sample(root / "log", num_rows, num_days, params.sample.seed, schema, progress)
    (root / "days").mkdir()
    with (root / "log").open("rb") as log:
        for day in range(num_days):
            with (root / "days" / f"day_{day}").open("wb") as file:
                for _ in range(num_rows // num_days):
                    file.write(next(log))
    (root / "log").unlink()
    collect(params, root)
    ingest(params, root)
    return params


def hash_of(root: Path) -> str:
    """Return a hash of artifacts/features."""
    digest = hashlib.sha256()
    for path in sorted((root / FEATURES).rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()


def main() -> None:
    """Measure all runs and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--days", type=int, default=8)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    figures: dict[str, list[dict[str, float]]] = defaultdict(list)
    hashes = set()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        params = prepare(root, arguments.rows, arguments.days)

        def run(name: str, address: str) -> None:
            shutil.rmtree(root / FEATURES, ignore_errors=True)
            command = [sys.executable, "-c", RUN, address, params.model_dump_json(by_alias=True)]
            output = subprocess.run(
                [*command, str(root)], check=True, stdout=subprocess.PIPE, text=True
            ).stdout
            figures[name].append(json.loads(output.splitlines()[-1]))
            hashes.add(hash_of(root))

        for _ in range(arguments.rounds):
            run("local", "local")
            for num_workers in arguments.workers:
                with cluster_of(num_workers, root) as address:
                    run(f"{num_workers} workers", address)
    print(f"{'':12}" + "".join(f"{phase:>10}" for phase in PHASES))
    for name, runs in figures.items():
        medians = [
            statistics.median(one[phase] for one in runs) if phase in runs[0] else None
            for phase in PHASES
        ]
        shown = [f"{'' if one is None else round(one, 2):>10}" for one in medians]
        print(f"{name:12}" + "".join(shown))
    print("the bytes are equal" if len(hashes) == 1 else f"DIFFERENT BYTES: {hashes}")
    sys.exit(len(hashes) != 1)


if __name__ == "__main__":
    main()
