"""A load test of `clickmill serve` on this machine, beside other servers of the same model.

    python benchmarks/serve.py [--root PATH] [--only PART ...] [--rounds 3] [--seconds 3]
                               [--litserve PYTHON] [--picture docs/images/serving.png]

wrk and hey send the requests (Debian has packages of both), and share the cores with the server.
Each server is one process with one thread, and each round starts a new one. The parts:

    servers   requests/s and times with 1, 8 and 32 connections, 1 row and 100 rows a request
                  ours      clickmill serve, as shipped
                  FastAPI   its encoder and runtime behind FastAPI, on the same uvicorn
                  LitServe  the same behind LitServe; left out without --litserve, the interpreter
                            of an environment with requirements/serve.txt and litserve
                  PyTorch   the functions of `clickmill predict` behind FastAPI
    json      ours, rows as JSON beside rows as lines
    rate      ours at half of the highest rate
    models    ours with 1, 8 and 64 models, of which each request asks for one
    swap      ours, while a link leads from one model to another and back each second: 100,000
              requests, each of which must have the score and the version of one of the two
    memory    one process with 64 models, and 64 processes with one

--root names a project folder with the artifacts of the built-in sample log; without it a model is
trained on that log with the shipped parameters, one of its ensemble.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from itertools import islice
from pathlib import Path

import orjson
import psutil
from load.clients import JSON, Answers, Requests, at_rate, check_tools, saturate
from load.servers import cpu_s, free_port, memory_mib, running
from quality import make_features, with_values
from speed import machine

from common.artifact import Artifact
from common.bundle_layout import MODEL
from common.config.params import Params, load_params
from common.layout import RAW
from features.collect.stage import BUILT_IN, SAMPLE_LOG
from training.export.export_model import export
from training.inference.bundle import load_bundle
from training.stage import train

CONNECTIONS = [1, 8, 32]
CANDIDATES = 100
NUM_LINES, MAX_BODIES = 5000, 500  # different rows and requests
NUM_MODELS = [1, 8, 64]
SWAP_REQUESTS, SWAP_EVERY_S, SWAP_CONNECTIONS = 100_000, 1.0, 8
RATE_S = 10
NUM_PROCESSES = 8  # of one model each, whose memory is measured
PEERS = Path(__file__).parent / "peers"
SCORE = "/score"


@dataclass(frozen=True)
class Served:
    """The models that the servers serve, and the rows of the requests.

    Attributes:
        bundle: The folder of the bundle.
        serving: Its serving bundle.
        other: The serving bundle of another model of the same features.
        lines: Rows without label, as lines of text.
        columns: The names of their fields.
    """

    bundle: Path
    serving: Path
    other: Path
    lines: list[bytes]
    columns: list[str]

    def requests(self, num_rows: int, paths: Sequence[str] = (SCORE,)) -> Requests:
        """Return requests with a number of rows as lines."""
        bodies = [b"".join(rows) for rows in self._groups(num_rows)]
        return Requests(paths, bodies)

    def json_requests(self, num_rows: int) -> Requests:
        """Return the same requests with the rows as JSON."""
        bodies = [
            orjson.dumps({"rows": [self._record(line) for line in rows]})
            for rows in self._groups(num_rows)
        ]
        return Requests([SCORE], bodies, JSON)

    def litserve_requests(self, num_rows: int) -> Requests:
        """Return the same requests as LitServe takes them, which reads JSON only."""
        bodies = [
            orjson.dumps({"lines": b"".join(rows).decode()}) for rows in self._groups(num_rows)
        ]
        return Requests([SCORE], bodies, JSON)

    def _groups(self, num_rows: int) -> Iterator[list[bytes]]:
        for k in range(min(MAX_BODIES, len(self.lines) // num_rows)):
            yield self.lines[k * num_rows : (k + 1) * num_rows]

    def _record(self, line: bytes) -> dict[str, str | None]:
        fields = line.decode().rstrip("\n").split("\t")
        return {name: value or None for name, value in zip(self.columns, fields, strict=True)}


@dataclass(frozen=True)
class Contender:
    """A server.

    Attributes:
        command: Its command, without the port, which comes last.
        requests: Makes requests of a number of rows.
        most_connections: More would only wait longer.
    """

    command: list[str]
    requests: Callable[[int], Requests]
    most_connections: int = max(CONNECTIONS)


def ours(*models: str) -> list[str]:
    """Return the command of `clickmill serve` with models NAME=PATH, without the port."""
    command = [str(Path(sys.executable).with_name("clickmill")), "serve"]
    return [*command, *(word for model in models for word in ("--model", model)), "--port"]


def contenders(served: Served, litserve: Path | None) -> dict[str, Contender]:
    """Return the servers to compare."""

    def peer(name: str, bundle: Path, python: str = sys.executable) -> list[str]:
        return [python, str(PEERS / f"serve_{name}.py"), str(bundle)]

    found = {
        "ours": Contender(ours(f"m={served.serving}"), served.requests),
        "FastAPI": Contender(peer("fastapi", served.serving), served.requests),
    }
    if litserve:
        command = peer("litserve", served.serving, str(litserve))
        found["LitServe"] = Contender(command, served.litserve_requests)
    found["PyTorch"] = Contender(peer("torch", served.bundle), served.requests, 1)
    return found


@contextmanager
def port_of(command: list[str], requests: Requests) -> Iterator[int]:
    """Run a server and give its port."""
    with server_of(command, requests) as (port, _):
        yield port


@contextmanager
def server_of(command: list[str], requests: Requests) -> Iterator[tuple[int, psutil.Process]]:
    """Run a server and give its port and its process."""
    port = free_port()
    with running([*command, str(port)], port, requests) as server:
        saturate(port, requests, 1, 1)  # the first calls are slower
        yield port, server


def median(answers: list[Answers]) -> Answers:
    """Return the answers of the round with the median rate, with the failures of all rounds."""
    ordered = sorted(answers, key=lambda one: one.per_s)
    return replace(ordered[len(ordered) // 2], failed=sum(one.failed for one in answers))


def figures(one: Answers) -> str:
    """Format requests/s and times as cells of a table."""
    failed = f" ({one.failed} failed)" if one.failed else ""
    return f"{one.per_s:,.1f}{failed} | {one.p50_ms:.2f} | {one.p95_ms:.2f} | {one.p99_ms:.2f}"


def compare_servers(
    served: Served, options: argparse.Namespace
) -> dict[tuple[str, int, int], Answers]:
    """Measure all servers in turns, and print requests/s and times.

    Returns:
        The answers by server, rows of a request and connections.
    """
    found = contenders(served, options.litserve)
    rounds: dict[tuple[str, int, int], list[Answers]] = {}
    for _ in range(options.rounds):
        for name, contender in found.items():
            with server_of(contender.command, contender.requests(1)) as (port, server):
                for num_rows in (1, CANDIDATES):
                    requests = contender.requests(num_rows)
                    for connections in CONNECTIONS:
                        if connections <= contender.most_connections:
                            before_s = cpu_s(server)
                            one = saturate(port, requests, connections, options.seconds)
                            cpu_ms = 1000 * (cpu_s(server) - before_s) / one.requests
                            case = (name, num_rows, connections)
                            rounds.setdefault(case, []).append(replace(one, cpu_ms=cpu_ms))
    results = {case: median(answers) for case, answers in rounds.items()}
    for num_rows in (1, CANDIDATES):
        print(f"\nrows of a request: {num_rows}\n")
        print("| connections | server | requests/s | p50, ms | p95 | p99 | x | CPU, ms | x CPU |")
        print("|---|---|---|---|---|---|---|---|---|")
        for connections in CONNECTIONS:
            for name in found:
                if one := results.get((name, num_rows, connections)):
                    pairs = list(
                        zip(
                            rounds["ours", num_rows, connections],
                            rounds[name, num_rows, connections],
                            strict=True,
                        )
                    )
                    faster = statistics.median(a.per_s / b.per_s for a, b in pairs)
                    cheaper = statistics.median(b.cpu_ms / a.cpu_ms for a, b in pairs)
                    print(
                        f"| {connections} | {name} | {figures(one)} | {faster:.2f}"
                        f" | {one.cpu_ms:.2f} | {cheaper:.2f} |",
                        flush=True,
                    )
    print("x: requests/s of ours divided by those of the server, median of the rounds")
    print("CPU: processor time of the server for a request, which other processes change little")
    return results


def compare_json(served: Served, options: argparse.Namespace) -> None:
    """Print the figures of ours for rows as lines and as JSON."""
    print("\n| rows a request | as | connections | requests/s | p50, ms | p95 | p99 |")
    print("|---|---|---|---|---|---|---|")
    with port_of(ours(f"m={served.serving}"), served.requests(1)) as port:
        for num_rows in (1, CANDIDATES):
            kinds = {"lines": served.requests(num_rows), "JSON": served.json_requests(num_rows)}
            for connections in (1, 32):
                for kind, requests in kinds.items():
                    one = saturate(port, requests, connections, options.seconds)
                    print(f"| {num_rows} | {kind} | {connections} | {figures(one)} |", flush=True)


def measure_rate(served: Served, options: argparse.Namespace) -> None:
    """Print the times of ours at half of the rate at which it is saturated."""
    requests = served.requests(1)
    with port_of(ours(f"m={served.serving}"), requests) as port:
        most = saturate(port, requests, max(CONNECTIONS), options.seconds)
        one = at_rate(port, requests, most.per_s / 2, RATE_S)
    print(f"\nsaturated at {most.per_s:,.0f} requests/s. At half of it, in bursts of 8:")
    print("| requests/s | p50, ms | p95 | p99 |\n|---|---|---|---|")
    print(f"| {figures(one)} |", flush=True)


def measure_models(served: Served, folder: Path, options: argparse.Namespace) -> None:
    """Print the figures of ours by number of models."""
    print("\n| models | connections | requests/s | p50, ms | p95 | p99 | memory, MiB |")
    print("|---|---|---|---|---|---|---|")
    for count in NUM_MODELS:
        paths = copies(served, folder, count)
        requests = served.requests(1, [f"/models/{path.name}/score" for path in paths])
        port = free_port()
        command = [*ours(*(f"{path.name}={path}" for path in paths)), str(port)]
        with running(command, port, requests) as server:
            for connections in (1, 32):
                one = saturate(port, requests, connections, options.seconds)
                memory = memory_mib(server)
                print(f"| {count} | {connections} | {figures(one)} | {memory:,.0f} |", flush=True)


def copies(served: Served, folder: Path, count: int) -> list[Path]:
    """Return copies of the serving bundle, which are models of their own for a server."""
    paths = [folder / f"m{k}" for k in range(count)]
    for path in paths:
        if not path.exists():
            shutil.copytree(served.serving, path)
    return paths


def swap_under_load(served: Served, folder: Path) -> None:
    """Print what came back while a link was replaced each second; exit if anything was wrong."""
    link = folder / "production"
    point(link, served.serving)
    requests = replace(served.requests(1), bodies=served.requests(1).bodies[:1])
    stop = threading.Event()

    def swap() -> None:
        targets = [served.other, served.serving]
        while not stop.wait(SWAP_EVERY_S):
            point(link, targets[0])
            targets.reverse()

    expected = set()
    for serving in (served.serving, served.other):
        with port_of(ours(f"m={serving}"), requests) as port:
            expected |= {*saturate(port, requests, 1, 1, count=True).answers}
    total, failed, found = 0, 0, dict.fromkeys(expected, 0)
    with port_of(ours(f"m={link}"), requests) as port, ThreadPoolExecutor(1) as pool:
        swapped = pool.submit(swap)
        try:
            while total < SWAP_REQUESTS:
                one = saturate(port, requests, SWAP_CONNECTIONS, 10, count=True)
                total, failed = total + one.requests, failed + one.failed
                for answer, times in one.answers.items():
                    found[answer] = found.get(answer, 0) + times
        finally:
            stop.set()
        swapped.result()
    print(f"\n{total:,} requests while the model was swapped each second: {failed} failed")
    for answer, times in found.items():
        print(f"    {times:,} x {answer}" + ("" if answer in expected else "   WRONG"))
    if failed or {*found} != expected or len(expected) != 2 or not all(found.values()):
        sys.exit("an answer failed, was wrong, or one of the models never answered")


def point(link: Path, target: Path) -> None:
    """Let a link lead to another folder by one rename, as a promotion does."""
    scratch = link.with_name(f".{link.name}.tmp")
    scratch.symlink_to(target)
    scratch.replace(link)


def compare_memory(served: Served, folder: Path) -> None:
    """Print the memory of one process with 64 models, and of processes with one each."""
    most = max(NUM_MODELS)
    paths = copies(served, folder, most)
    alone = []
    with ExitStack() as stack:
        servers = []
        for path in paths[:NUM_PROCESSES]:
            port = free_port()
            command = [*ours(f"m={path}"), str(port)]
            servers.append(stack.enter_context(running(command, port, served.requests(1))))
            alone.append(memory_mib(servers[0])) if len(servers) == 1 else None
        together = sum(memory_mib(server) for server in servers)
    port = free_port()
    requests = served.requests(1, [f"/models/{path.name}/score" for path in paths])
    command = [*ours(*(f"{path.name}={path}" for path in paths)), str(port)]
    with running(command, port, requests) as server:
        shared = memory_mib(server)
    per_process = together / NUM_PROCESSES
    print(f"\n| {most} models | MiB | x |\n|---|---|---|")
    print(f"| in one process | {shared:,.0f} | 1 |")
    print(
        f"| in {most} processes, by the {per_process:,.0f} MiB of one of {NUM_PROCESSES}"
        f" | {most * per_process:,.0f} | {most * per_process / shared:.1f} |"
    )
    print(
        f"| in {most} processes, by the {alone[0]:,.0f} MiB of one alone"
        f" | {most * alone[0]:,.0f} | {most * alone[0] / shared:.1f} |",
        flush=True,
    )


def draw(results: dict[tuple[str, int, int], Answers], path: Path) -> None:
    """Draw requests/s and the 99th percentile by connections."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    for name in dict.fromkeys(name for name, _, _ in results):
        points = [
            (connections, one)
            for (server, num_rows, connections), one in results.items()
            if server == name and num_rows == 1
        ]
        counts = [connections for connections, _ in points]
        axes[0].plot(counts, [one.per_s for _, one in points], "o-", label=name)
        axes[1].plot(counts, [one.p50_ms for _, one in points], "o-", label=name)
    for ax, title in zip(
        axes, ("requests per second", "median time of a request, ms"), strict=True
    ):
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set_xticks(CONNECTIONS, [str(connections) for connections in CONNECTIONS])
        ax.set_xlabel("connections, 1 row a request")
        ax.set_title(title)
        ax.grid(alpha=0.3, which="both")
    axes[0].legend()
    figure.savefig(path, dpi=120)
    print(f"{path} written")


def make_served(root: Path, folder: Path, params: Params) -> Served:
    """Export the model of a project twice; with int8 tables it is another model."""
    for name, tables in (("serving", "fp32"), ("other", "int8")):
        formats = params.export.model_copy(update={"tables": tables})
        export(root / MODEL, folder / name, formats, root)
    schema = load_bundle(root / MODEL).state.schema
    with Artifact.open(root / RAW).path(SAMPLE_LOG).open("rb") as log:
        lines = [line.partition(b"\t")[2] for line in islice(log, NUM_LINES)]
    columns = schema.log_columns(labelled=False)
    return Served(root / MODEL, folder / "serving", folder / "other", lines, columns)


def main() -> None:
    """Train or load a model, and measure."""
    parts = ("servers", "json", "rate", "models", "swap", "memory")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, help="a project folder with features and a model")
    parser.add_argument("--only", choices=parts, nargs="+", default=parts)
    parser.add_argument("--rounds", type=int, default=3, help="starts of each server")
    parser.add_argument("--seconds", type=float, default=3, help="of each load")
    parser.add_argument("--litserve", type=Path, help="an interpreter that has LitServe")
    parser.add_argument("--picture", type=Path, help="the picture of the part `servers` to write")
    options = parser.parse_args()
    check_tools()
    params = with_values(load_params(), data={"source": BUILT_IN}, train={"ensemble_size": 1})
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        root = options.root or folder / "project"
        with redirect_stdout(StringIO()):
            if not options.root:
                make_features(params, root)
                train(params, root)
            served = make_served(root, folder, params)
        print(f"{machine.describe(1, 'cpu')}; load {os.getloadavg()[0]:.1f} before", flush=True)
        started_s = time.monotonic()
        for part in options.only:
            match part:
                case "servers":
                    results = compare_servers(served, options)
                    if options.picture:
                        draw(results, options.picture)
                case "json":
                    compare_json(served, options)
                case "rate":
                    measure_rate(served, options)
                case "models":
                    measure_models(served, folder, options)
                case "swap":
                    swap_under_load(served, folder)
                case "memory":
                    compare_memory(served, folder)
        print(f"\n{time.monotonic() - started_s:.0f} s; load {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
