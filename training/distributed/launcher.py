"""Training on several ranks: an agent of torchrun on each node, and what the nodes tell each other.

The first node, where the train stage runs, writes CALL into the folder that all nodes share; `clickmill join` on any other node finds it
there and starts an agent too. The agents meet at the first node's endpoint (torchrun's c10d rendezvous). None outlives the process that
started it.
"""

import os
import re
import secrets
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.config.params import ConfigError, Params
from common.files import remove, replaced
from common.logs import get_logger
from common.subprocess_tree import CommandFailed, run_streaming
from training.distributed.device import Accelerator, check_precision, pick_accelerator
from training.distributed.failure_reports import REFUSALS, explain, leave_error, read_notes
from training.loop.checkpoint import CHECKPOINTS, Checkpoints, run_key

log = get_logger("train")
join_log = get_logger("join")

NODES = Path("runs/nodes")
CALL = NODES / "call.json"
NIGHT = Path("runs/night")  # flows.nights.clone.CLONE
AGENT, WORKER = "training.distributed.torchrun_agent", "training.distributed.worker"
JOIN_WITHIN_S = 600
POLL_S = 0.5
VARIABLES = {"nodes": "PET_NNODES", "devices": "PET_NPROC_PER_NODE"}  # torchrun's names
ENDPOINT = "PET_RDZV_ENDPOINT"
HOST_PORT = r"^\S+:\d+$"


class Call(BaseModel):
    """To take part in a training. id: the run's key (training.checkpoint.run_key) and, behind it, the attempt's; endpoint: HOST:PORT of
    the first node, None where it is the only one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}-[0-9a-f]{8}$")]  # it names a folder
    endpoint: Annotated[str, Field(pattern=HOST_PORT)] | None
    accelerator: Accelerator
    params: Params

    @property
    def key(self) -> str:
        return self.id.partition("-")[0]

    def checkpoints(self, root: Path) -> Checkpoints:
        return Checkpoints(root / CHECKPOINTS / self.key)

    def notes(self, root: Path) -> Path:
        return root / NODES / self.id

    def begun(self, root: Path) -> Path:
        """There once a rank has started: a node that came then would have torchrun start all of them again."""
        return self.notes(root) / "begun"


class RanksFailed(CommandFailed):
    """The message says which rank failed first, and its last lines."""

    def __init__(self, failed: CommandFailed, message: str) -> None:
        super().__init__(failed.command, failed.code, failed.tail)
        self.args = (message,)


def as_deployed(params: Params) -> Params:
    """params with the numbers of nodes, and of devices on each, that the environment says, where it does: a deployment's job variables.

    Raises ConfigError for what is no number.
    """
    found = {}
    for name, variable in VARIABLES.items():
        if (text := os.environ.get(variable)) is None:
            continue
        if not text.isdecimal() or not int(text):
            raise ConfigError(
                f"{variable} is {text!r} in the environment; a number expected, for train.{name}"
            )
        found[name] = int(text)
    return params.model_copy(update={"train": params.train.model_copy(update=found)})


def fit_on_ranks(
    params: Params, root: Path, accelerator: Accelerator, checkpoints: Checkpoints
) -> None:
    """Train on train.devices ranks of this machine and, with train.nodes, of others that join.

    Raises the ConfigError or DataError by which a rank refuses, RanksFailed for any other end but success.
    """
    several = params.train.nodes > 1
    call = Call(
        id=f"{checkpoints.directory.name}-{secrets.token_hex(4)}",
        endpoint=free_endpoint() if several else None,
        accelerator=accelerator,
        params=params,
    )
    remove(root / NODES)
    try:
        if several:
            more = f"{params.train.nodes - 1} more of {params.train.nodes} nodes"
            log.info(
                f"waits {JOIN_WITHIN_S // 60} minutes at {call.endpoint} for {more}: clickmill join, in this folder"
            )
            with replaced(root / CALL) as scratch:
                scratch.write_text(call.model_dump_json(by_alias=True), encoding="utf-8")
        run_agent(call, root, first=True)
    except CommandFailed as failed:
        notes = read_notes(call.notes(root), of_other_nodes=several)
        if notes and (refusal := REFUSALS.get(notes[0].kind)):
            raise refusal(notes[0].text) from None
        if notes:
            log.error(notes[0].text)
        raise RanksFailed(failed, explain(notes, params.train.num_ranks)) from None
    finally:
        remove(root / NODES)


def join(root: Path) -> None:
    """Be one more node of every training that the first node calls for in root, the folder they share, or in a night's clone there. Ends by
    a signal alone.

    A call that a first node left when it was killed is passed over: nobody answers at its endpoint.
    """
    join_log.info(f"{socket.gethostname()} waits for trainings in {root.resolve()}")
    done = told = ""
    while True:
        call, place = next(calls(root), (None, root))
        if call is None or call.id == done or call.begun(place).exists() or not answers(call):
            time.sleep(POLL_S)
            continue
        try:
            check_alike(call, place)
            run_agent(call, place, first=False)
            outcome = "done"
        except ConfigError as error:
            leave_error(call.notes(place), f"node {socket.gethostname()}", error)
            outcome, done = f"refused: {error}", call.id
        except CommandFailed:
            outcome = explain(
                read_notes(call.notes(place), of_other_nodes=False), call.params.train.num_ranks
            )
            time.sleep(POLL_S)
        if call.id != told:
            join_log.info(f"{outcome}; waits for the next")
            told = call.id


def calls(root: Path) -> Iterator[tuple[Call, Path]]:
    """The calls in root and in its night's clone, and where each is from."""
    for place in (root, root / NIGHT):
        if call := read_call(place / CALL):
            yield call, place


def read_call(path: Path) -> Call | None:
    """None while there is none, and for that of another version, which the first node will see nobody join."""
    try:
        return Call.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def answers(call: Call) -> bool:
    """Whether the first node's agent is there already, and still."""
    host, _, port = (call.endpoint or "").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=POLL_S).close()
    except (OSError, ValueError):
        return False
    return True


def check_alike(call: Call, root: Path) -> None:
    """Raises ConfigError where this node would do other maths than the first one: other code, features or versions of libraries."""
    params = call.params.train
    check_precision(params, call.accelerator)
    if call.accelerator != (here := pick_accelerator(params)):
        raise ConfigError(
            f"{socket.gethostname()} would train on {here}, but the first node does on {call.accelerator}; give all nodes the same"
        )
    if (key := run_key(call.params, call.accelerator, root)) != call.key:
        raise ConfigError(
            f"{socket.gethostname()} has other code, features, compiler or versions of libraries than the first node (run {key}, there"
            f" {call.key}); give all nodes one folder and one image"
        )


def run_agent(call: Call, root: Path, *, first: bool) -> None:
    """The ranks of this node, until they end. Raises CommandFailed."""
    params = call.params.train
    threads = max(1, len(os.sched_getaffinity(0)) // params.devices)
    ranks = (
        f"{params.devices} of {params.num_ranks} ranks"
        if params.nodes > 1
        else f"{params.num_ranks} ranks"
    )
    log.info(f"{ranks} on {call.accelerator}, {threads} thread{'s' * (threads > 1)} each")
    torchrun = [
        *where(call, first=first),
        f"--nproc-per-node={params.devices}",
        "--max-restarts=0",
        "-m",
        WORKER,
    ]
    run_streaming(
        [
            sys.executable,
            "-m",
            AGENT,
            str(call.notes(root)),
            *torchrun,
            str(root.resolve()),
            call.model_dump_json(by_alias=True),
        ],
        lambda line: print(line, flush=True),
        cwd=root,  # and so by the code that is there, if it has some, as a night's clone has
        env={"OMP_NUM_THREADS": str(threads), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        # SIGTERM would have torchrun wait for ranks that Lightning keeps busy; they die with it, and nothing is half-written
        when_orphaned=signal.SIGKILL,
    )


def where(call: Call, *, first: bool) -> list[str]:
    """torchrun's arguments. It numbers the nodes in the order of their --local-addr: the first node is to have rank 0, which writes the
    model and reports, and a tilde comes after every character of a host's name."""
    if call.endpoint is None:
        return ["--standalone"]
    host = call.endpoint.rpartition(":")[0]
    return [
        f"--nnodes={call.params.train.nodes}",
        "--rdzv-backend=c10d",
        f"--rdzv-id={call.id}",
        f"--rdzv-endpoint={call.endpoint}",
        f"--rdzv-conf=is_host={int(first)},join_timeout={JOIN_WITHIN_S}",
        f"--local-addr={host if first else '~' + socket.gethostname()}",
    ]


def free_endpoint() -> str:
    """HOST:PORT at which other nodes reach this one: the environment's ENDPOINT, else the address that this host has on its network, and
    a free port. Raises ConfigError where there is no network."""
    if given := os.environ.get(ENDPOINT):
        if not re.fullmatch(HOST_PORT, given):
            raise ConfigError(
                f"{ENDPOINT} is {given!r} in the environment; HOST:PORT of this machine expected"
            )
        return given
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            out.connect(("192.0.2.1", 9))  # of RFC 5737; nothing is sent, but a route is chosen
            host = out.getsockname()[0]
    except OSError as error:
        raise ConnectionError(
            f"params.yaml: train.nodes is above 1, but this host has no network ({error}); set {ENDPOINT}=HOST:PORT"
        ) from None
    with socket.create_server((host, 0)) as server:
        return f"{host}:{server.getsockname()[1]}"
