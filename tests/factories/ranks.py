"""Runs a function on several ranks that communicate by gloo, as under torchrun but faster.

The processes are forked from a server that has imported everything.
"""

import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from common.logs import configure_logging

# All tests share one server, so it imports what any of them needs.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "training.stage",
        "training.distributed.sharding.strategy",
        "pandas",
        "pytest",
        "polars.testing",
        "tests.factories.features",
    ]
)
TIMEOUT = timedelta(seconds=90)


def on_ranks(
    num_ranks: int, function: Callable[..., Any], *arguments: Any, ranks_per_node: int | None = None
) -> list[Any]:
    """Return what function(*arguments) returned on each rank; fail if it failed on one."""
    ends = ends_of_ranks(num_ranks, function, *arguments, ranks_per_node=ranks_per_node)
    errors = [str(value) for kind, value in ends if kind != "result"]
    # a rank that lost its peer is a consequence: another error is shown first
    assert not errors, min(errors, key=lambda text: "Connection closed" in text)
    return [value for _, value in ends]


def ends_of_ranks(
    num_ranks: int, function: Callable[..., Any], *arguments: Any, ranks_per_node: int | None = None
) -> list[tuple[str, Any]]:
    """Run function(*arguments) on each rank and return how each one ended.

    Args:
        num_ranks: Number of ranks.
        function: A function of an importable module.
        arguments: Its arguments.
        ranks_per_node: Ranks of each node; all are on one node by default.

    Returns:
        For each rank ("result", what the function returned), ("error", a traceback) or
        ("ended", the exit code).
    """
    ranks_per_node = ranks_per_node or num_ranks
    with tempfile.TemporaryDirectory() as directory:
        ranks = []
        for rank in range(num_ranks):
            ours, theirs = PROCESSES.Pipe()
            environment = {
                "RANK": rank,
                "LOCAL_RANK": rank % ranks_per_node,
                "WORLD_SIZE": num_ranks,
                "LOCAL_WORLD_SIZE": ranks_per_node,
                "GROUP_RANK": rank // ranks_per_node,
                "MASTER_ADDR": "localhost",
                "MASTER_PORT": 0,  # not used: the ranks meet by a file
                "TORCHELASTIC_RUN_ID": "test",
            }
            process = PROCESSES.Process(
                target=_run_rank, args=(theirs, directory, environment, function, arguments)
            )
            process.start()
            theirs.close()
            ranks.append((process, ours))
        ends = []
        for process, ours in ranks:
            try:
                has_answer = ours.poll(TIMEOUT.seconds)
                ends.append(ours.recv() if has_answer else ("error", "no answer in time"))
            except EOFError:
                process.join(10)
                ends.append(("ended", process.exitcode))
        for process, _ in ranks:
            process.join(10)
            process.kill()
    return ends


def _run_rank(
    pipe: Any,
    directory: str,
    environment: dict[str, Any],
    function: Callable[..., Any],
    arguments: Any,
) -> None:
    torch.set_num_threads(1)
    os.environ.update({name: str(value) for name, value in environment.items()})
    rank, num_ranks = environment["RANK"], environment["WORLD_SIZE"]
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{directory}/store",
            rank=rank,
            world_size=num_ranks,
            timeout=TIMEOUT,
        )
        pipe.send(("result", function(*arguments)))
        dist.destroy_process_group()
    except BaseException:
        pipe.send(("error", f"rank {rank}: {traceback.format_exc()}"))
    sys.stdout.flush()
    os._exit(0)


def quietly(directory: Path, name: str) -> None:
    """Send what this process prints and logs to a file instead."""
    with (directory / name).open("a") as output:
        os.dup2(output.fileno(), 1)
    configure_logging()
