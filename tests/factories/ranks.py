"""Ranks as torchrun would start them, but forked from a process that has imported everything: real gloo, a fraction of the time."""

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

PROCESSES = multiprocessing.get_context(
    "forkserver"
)  # one server for all tests: it imports what its first user names
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
    """What function(*arguments) returned on each rank. Fails with a traceback if a rank did."""
    found = ends_of_ranks(num_ranks, function, *arguments, ranks_per_node=ranks_per_node)
    errors = [str(what) for kind, what in found if kind != "result"]
    assert not errors, min(errors, key=lambda text: "Connection closed" in text)
    return [what for _, what in found]


def ends_of_ranks(
    num_ranks: int, function: Callable[..., Any], *arguments: Any, ranks_per_node: int | None = None
) -> list[tuple[str, Any]]:
    """Of each rank ("result", what it returned), ("error", traceback) or ("ended", exit code)."""
    with tempfile.TemporaryDirectory() as directory:
        ranks = []
        for rank in range(num_ranks):
            ours, theirs = PROCESSES.Pipe()
            environment = {
                "RANK": rank,
                "LOCAL_RANK": rank % (ranks_per_node or num_ranks),
                "WORLD_SIZE": num_ranks,
                "LOCAL_WORLD_SIZE": ranks_per_node or num_ranks,
                "GROUP_RANK": rank // (ranks_per_node or num_ranks),
                "MASTER_ADDR": "localhost",
                "MASTER_PORT": 0,  # the process group is made here, by a file
                "TORCHELASTIC_RUN_ID": "test",
            }
            process = PROCESSES.Process(
                target=_be_a_rank, args=(theirs, directory, environment, function, arguments)
            )
            process.start()
            theirs.close()
            ranks.append((process, ours))
        found = []
        for process, ours in ranks:
            try:
                found.append(
                    ours.recv() if ours.poll(TIMEOUT.seconds) else ("error", "no answer in time")
                )
            except EOFError:
                process.join(10)
                found.append(("ended", process.exitcode))
        for process, _ in ranks:
            process.join(10)
            process.kill()
    return found


def _be_a_rank(
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
    """What this process prints goes to a file of this name."""
    with (directory / name).open("a") as output:
        os.dup2(output.fileno(), 1)
    configure_logging()
