"""Starts a training on several ranks: an agent of torchrun on each node.

The first node, where the train stage runs, writes the rendezvous file into the folder that all
nodes share. `clickmill stage join` on another node finds it there and starts an agent too. The
agents meet at the endpoint of the first node (torchrun's c10d rendezvous). No agent outlives the
process that started it.
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

from common.config.loading import ConfigError
from common.config.params import Params, Train
from common.files import remove, replaced
from common.full_disk import full_disk_at
from common.layout import NIGHTLY_CLONE
from common.logs import get_logger
from common.subprocess_tree import CommandFailed, run_streaming
from common.threads import thread_limit
from training.distributed.device import Accelerator, check_precision, pick_accelerator
from training.launch.failure_reports import USER_ERRORS, explain, read_reports, report_error
from training.loop.checkpoint import CHECKPOINTS, Checkpoints, run_key

log = get_logger("train")
join_log = get_logger("join")

NODES = Path("runs/nodes")
RENDEZVOUS_FILE = NODES / "rendezvous.json"
AGENT_MODULE = "training.launch.torchrun_agent"
WORKER_MODULE = "training.worker"
JOIN_TIMEOUT_S = 600
POLL_S = 0.5
# environment variables of torchrun that replace a parameter of `train`
ENVIRONMENT_OF_PARAM = {"nodes": "PET_NNODES", "devices": "PET_NPROC_PER_NODE"}
ENDPOINT_VARIABLE = "PET_RDZV_ENDPOINT"
HOST_PORT = r"^\S+:\d+$"


class Rendezvous(BaseModel):
    """The content of the rendezvous file: all that another node needs to take part.

    Attributes:
        id: The run's key (training.loop.checkpoint.run_key) and a number of this attempt. It names
            a folder.
        endpoint: HOST:PORT of the first node; None if it is the only one.
        accelerator: What all nodes train on.
        params: The parameters of the run.
        member: The number, from 0, of the member of an ensemble that is trained; None if the run
            trains one model only.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}-[0-9a-f]{8}$")]
    endpoint: Annotated[str, Field(pattern=HOST_PORT)] | None
    accelerator: Accelerator
    params: Params
    member: Annotated[int, Field(ge=0)] | None = None

    @property
    def run_key(self) -> str:
        """The run's key."""
        return self.id.partition("-")[0]

    def checkpoints(self, root: Path) -> Checkpoints:
        """Return the checkpoints of the run."""
        return Checkpoints(root / CHECKPOINTS / self.run_key, self.member)

    def reports(self, root: Path) -> Path:
        """Return the folder of the failure reports of this attempt."""
        return root / NODES / self.id

    def mark_started(self, root: Path) -> None:
        """Record that a rank has started.

        If another node joined now, torchrun would restart all ranks.
        """
        marker = self._started_marker(root)
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()

    def has_started(self, root: Path) -> bool:
        """Return whether a rank of this attempt has started."""
        return self._started_marker(root).exists()

    def _started_marker(self, root: Path) -> Path:
        return self.reports(root) / "started"


class RanksFailed(CommandFailed):
    """A training on several ranks failed; the message names the rank that failed first."""

    def __init__(self, failed: CommandFailed, message: str) -> None:
        super().__init__(failed.command, failed.code, failed.tail)
        self.args = (message,)


def apply_environment(params: Params) -> Params:
    """Replace train.nodes and train.devices by the job variables of a deployment, if they are set.

    Raises:
        ConfigError: A variable is not a positive number.
    """
    changes = {}
    for name, variable in ENVIRONMENT_OF_PARAM.items():
        text = os.environ.get(variable)
        if text is None:
            continue
        if not text.isdecimal() or not int(text):
            raise ConfigError(
                f"{variable} is {text!r} in the environment;"
                f" expected a positive number, for train.{name}"
            )
        changes[name] = int(text)
    return params.model_copy(update={"train": params.train.model_copy(update=changes)})


def fit_on_ranks(
    params: Params, root: Path, accelerator: Accelerator, checkpoints: Checkpoints
) -> None:
    """Train on train.devices ranks of this machine, and of the others that join.

    Others are waited for if train.nodes is above 1.

    Raises:
        ConfigError: A rank or node raised it.
        DataError: A rank or node raised it.
        FullDiskError: A rank or node raised it.
        RanksFailed: The training failed for any other reason.
    """
    has_other_nodes = params.train.nodes > 1
    rendezvous = Rendezvous(
        id=f"{checkpoints.run_directory.name}-{secrets.token_hex(4)}",
        endpoint=choose_endpoint() if has_other_nodes else None,
        accelerator=accelerator,
        params=params,
        member=checkpoints.member,
    )
    remove(root / NODES)
    try:
        if has_other_nodes:
            log.info(
                f"waiting up to {JOIN_TIMEOUT_S // 60} minutes at {rendezvous.endpoint} for"
                f" {params.train.nodes - 1} of {params.train.nodes} nodes; run"
                " `clickmill stage join` on them, in this folder"
            )
            with replaced(root / RENDEZVOUS_FILE) as scratch:
                scratch.write_text(rendezvous.model_dump_json(by_alias=True), encoding="utf-8")
        run_agent(rendezvous, root, is_first=True)
    except CommandFailed as failed:
        reports = read_reports(rendezvous.reports(root), of_other_nodes=has_other_nodes)
        if reports and (user_error := USER_ERRORS.get(reports[0].kind)):
            raise user_error(reports[0].text) from None
        # where the disk is still full, the rank that met that could not report it
        full = full_disk_at(rendezvous.reports(root))
        if full and (not reports or reports[0].kind == "failed"):
            raise full from None
        if reports:
            for line in reports[0].text.splitlines():  # of a traceback
                log.error(line)
        raise RanksFailed(failed, explain(reports, params.train.num_ranks)) from None
    finally:
        remove(root / NODES)


def join(root: Path) -> None:
    """Take part in every training for which the first node waits. Only a signal ends this function.

    A rendezvous file that a killed first node left is ignored: no process answers at its endpoint.

    Args:
        root: The folder that the nodes share; trainings of nightly runs are in a clone inside it.
    """
    join_log.info(f"{socket.gethostname()} waits for trainings in {root.resolve()}")
    refused_id = logged_id = ""
    while True:
        rendezvous, folder = next(find_rendezvous(root), (None, root))
        if (
            rendezvous is None
            or rendezvous.id == refused_id
            or rendezvous.has_started(folder)
            or not is_reachable(rendezvous)
        ):
            time.sleep(POLL_S)
            continue
        try:
            check_same_run(rendezvous, folder)
            run_agent(rendezvous, folder, is_first=False)
            outcome = "done"
        except ConfigError as error:
            report_error(rendezvous.reports(folder), f"node {socket.gethostname()}", error)
            outcome, refused_id = f"refused: {error}", rendezvous.id
        except CommandFailed:
            reports = read_reports(rendezvous.reports(folder), of_other_nodes=False)
            outcome = explain(reports, rendezvous.params.train.num_ranks)
            time.sleep(POLL_S)
        if rendezvous.id != logged_id:
            join_log.info(f"{outcome}; waits for the next training")
            logged_id = rendezvous.id


def find_rendezvous(root: Path) -> Iterator[tuple[Rendezvous, Path]]:
    """Yield the rendezvous of root and of its nightly clone, each with its folder."""
    for folder in (root, root / NIGHTLY_CLONE):
        if rendezvous := read_rendezvous(folder / RENDEZVOUS_FILE):
            yield rendezvous, folder


def read_rendezvous(path: Path) -> Rendezvous | None:
    """Read a rendezvous file.

    Returns:
        None if there is no such file, or if another version of this code wrote it: then the first
            node
        times out and says that no node joined.
    """
    try:
        return Rendezvous.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def is_reachable(rendezvous: Rendezvous) -> bool:
    """Return whether the first node's agent answers at its endpoint."""
    host, _, port = (rendezvous.endpoint or "").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=POLL_S).close()
    except (OSError, ValueError):
        return False
    return True


def check_same_run(rendezvous: Rendezvous, root: Path) -> None:
    """Check that this node would compute the same as the first node.

    Raises:
        ConfigError: It has other code, features, versions of libraries or devices.
    """
    check_precision(rendezvous.params.train, rendezvous.accelerator)
    accelerator = pick_accelerator(rendezvous.params.train)
    if accelerator != rendezvous.accelerator:
        raise ConfigError(
            f"{socket.gethostname()} would train on {accelerator}, but the first node does on"
            f" {rendezvous.accelerator}; give all nodes the same devices"
        )
    key = run_key(rendezvous.params, accelerator, root)
    if key != rendezvous.run_key:
        raise ConfigError(
            f"{socket.gethostname()} has other code, features, compiler or versions of libraries"
            f" than the first node (run {key}, there {rendezvous.run_key});"
            " give all nodes one folder and one image"
        )


def run_agent(rendezvous: Rendezvous, root: Path, *, is_first: bool) -> None:
    """Run the ranks of this node until they end.

    Raises:
        CommandFailed: A rank failed.
    """
    params = rendezvous.params.train
    num_threads = threads_of_a_rank(params)
    ranks = f"{params.num_ranks} ranks"
    if params.nodes > 1:
        ranks = f"{params.devices} of {ranks}"
    threads = "1 thread" if num_threads == 1 else f"{num_threads} threads"
    log.info(f"{ranks} on {rendezvous.accelerator}, {threads} each")
    command = [sys.executable, "-m", AGENT_MODULE, str(rendezvous.reports(root))]
    command += torchrun_arguments(rendezvous, is_first=is_first)
    command += [str(root.resolve()), rendezvous.model_dump_json(by_alias=True)]
    run_streaming(
        command,
        lambda line: print(line, flush=True),
        cwd=root,  # code that is in root, as in a nightly clone, is used before installed code
        env={"OMP_NUM_THREADS": str(num_threads), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        # After SIGTERM torchrun would wait for ranks that Lightning keeps busy. With SIGKILL they
        # die with it, and no file is left half-written.
        when_orphaned=signal.SIGKILL,
    )


def threads_of_a_rank(params: Train) -> int:
    """Return the number of CPU threads of each rank of this node (`train.threads`)."""
    if params.threads != "auto":
        return params.threads
    return max(1, thread_limit() // params.devices)


def torchrun_arguments(rendezvous: Rendezvous, *, is_first: bool) -> list[str]:
    """Return the arguments of torchrun, up to the module of a rank.

    torchrun numbers the nodes in the order of --local-addr. The first node must have rank 0, which
    writes the model and reports, so the names of the others start with a tilde: it is sorted after
    every character of a host name.
    """
    params = rendezvous.params.train
    ranks = [f"--nproc-per-node={params.devices}", "--max-restarts=0", "-m", WORKER_MODULE]
    if rendezvous.endpoint is None:
        return ["--standalone", *ranks]
    host = rendezvous.endpoint.rpartition(":")[0]
    address = host if is_first else f"~{socket.gethostname()}"
    return [
        f"--nnodes={params.nodes}",
        "--rdzv-backend=c10d",
        f"--rdzv-id={rendezvous.id}",
        f"--rdzv-endpoint={rendezvous.endpoint}",
        f"--rdzv-conf=is_host={int(is_first)},join_timeout={JOIN_TIMEOUT_S}",
        f"--local-addr={address}",
        *ranks,
    ]


def choose_endpoint() -> str:
    """Return HOST:PORT at which other nodes reach this one.

    It is that of PET_RDZV_ENDPOINT, or else this host's address on its network and a free port.

    Raises:
        ConfigError: PET_RDZV_ENDPOINT is not HOST:PORT.
        ConnectionError: There is no network.
    """
    if endpoint := os.environ.get(ENDPOINT_VARIABLE):
        if not re.fullmatch(HOST_PORT, endpoint):
            raise ConfigError(
                f"{ENDPOINT_VARIABLE} is {endpoint!r} in the environment;"
                " expected HOST:PORT of this machine"
            )
        return endpoint
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            # An address of RFC 5737. Nothing is sent, but the kernel chooses a route.
            udp.connect(("192.0.2.1", 9))
            host = udp.getsockname()[0]
    except OSError as error:
        raise ConnectionError(
            f"params.yaml: train.nodes is above 1, but this host has no network ({error});"
            f" set {ENDPOINT_VARIABLE}=HOST:PORT"
        ) from None
    with socket.create_server((host, 0)) as server:
        return f"{host}:{server.getsockname()[1]}"
