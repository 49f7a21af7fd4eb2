"""The engine of the parameter servers: actors of Ray. The only file that imports Ray.

It is imported only where `train.parallel` is servers.
"""

import atexit
import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psutil

from common.config.loading import ConfigError
from common.config.params import Train
from common.threads import POOL_SIZES, WAITING, thread_limit
from training.adapters.ray_processes import needed_processes_only
from training.adapters.unused_imports import delay_unused_imports
from training.servers.engine import Actor, ActorLost, Pending
from training.servers.ray_watchdog import (
    STARTING_FILE,
    TOKEN_FILE,
    TOKEN_VARIABLE,
    start_watchdog,
)

# What Ray reads when it is imported.
RAY_SETTINGS = {
    # Ray leaves 127.0.0.1 as it is only where it expects no other machine, which is the default on
    # macOS and Windows. Otherwise it replaces it by the address of this machine, which it learns
    # from a route to 8.8.8.8, and all its processes listen there.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run` it would upload the working directory
    "RAY_USAGE_STATS_ENABLED": "0",
}


@contextmanager
def _environment(**variables: str | None) -> Iterator[None]:
    """Set environment variables within this block; None removes one."""
    before = {name: os.environ.get(name) for name in variables}
    try:
        _set_environment(variables)
        yield
    finally:
        _set_environment(before)


def _set_environment(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


try:
    with _environment(**RAY_SETTINGS):
        import ray
        from ray._private import parameter, services
        from ray.util.placement_group import PlacementGroup, placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
except ModuleNotFoundError as error:
    package = str(error.name).partition(".")[0]
    raise ConfigError(
        f"train.parallel is servers, but {package} is not installed: pip install "
        "'clickmill[servers]', or set train.parallel to data, model or hybrid, which do without"
    ) from None

OTHER_ACTORS = ("the coordinator", "the dense server")
RAY_VERSION = "2.60.0"  # that of requirements/servers.in, whose addresses the tests check
LOOPBACK = "127.0.0.1"
# Calls with arguments or results above 100 kB go through shared memory of this size. If it is full,
# or larger than /dev/shm, Ray uses files in its temporary folder.
OBJECT_STORE_BYTES = 128 << 20
ANSWER_WITHIN_S = 10.0
PLACED_WITHIN_S = 120.0  # also the time in which an autoscaler may add machines
FOLDER_PREFIX = "clickmill-ray-"
# The path of a Unix socket has at most 107 bytes, of which ours and Ray's names take 91.
MAX_FOLDER_LENGTH = 16
CHECK_EVERY_S = 2.0
REASON_SENTENCES = 2  # of Ray's account of an actor's end; what follows are guesses
SERVERS = ("gcs_server", "raylet")  # the processes without which a cluster is lost
# The ways in which Ray reports that an actor, or the machine with its answer, is gone.
LOST = (
    ray.exceptions.RayActorError,
    ray.exceptions.ObjectLostError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.LocalRayletDiedError,
)


class _LocalServers:
    """The processes of Ray on this machine that this process cannot do without.

    Ray notices the end of one of them late, and inside of a waiting call never. The list is empty
    in the processes of actors, which end with Ray's own.
    """

    def __init__(self) -> None:
        self.processes: list[psutil.Process] = []

    def check(self) -> None:
        """Raise ConnectionError if one of them has ended."""
        for process in self.processes:
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                raise ConnectionError(
                    f"{process.name()}, a process of the Ray cluster on this machine, has ended, "
                    "and all actors here with it; was it killed, or did this machine run out of "
                    "memory?"
                )


_local_servers = _LocalServers()


class RayPending:
    """A call that has been sent to an actor of Ray."""

    def __init__(self, actor: str, ref: Any) -> None:
        self._actor, self.ref = actor, ref

    def result(self) -> Any:
        """Wait for the method and return its result.

        Raises:
            ConnectionError: Ray has ended on this machine.
        """
        try:
            while not ray.wait([self.ref], timeout=CHECK_EVERY_S)[0]:
                _local_servers.check()
            return ray.get(self.ref)
        except ray.exceptions.RayTaskError as error:
            # Asked first: an error that a method raised is also of the class of its cause.
            raise error.cause from None
        except LOST as error:
            raise ActorLost(self._actor, _reason_of(error)) from None


def _reason_of(error: Exception) -> str:
    """Return Ray's account of an actor's end: its first sentences, without ids and addresses."""
    text = " ".join(line for line in str(error).splitlines() if not line.startswith("\t"))
    return ". ".join(text.split(". ")[:REASON_SENTENCES])


class RayActor:
    """An actor of Ray. It can be given to actors."""

    def __init__(self, name: str, handle: Any) -> None:
        self.name, self.handle = name, handle

    def call(self, method: str, *args: Any) -> RayPending:
        """Send a call of a method and return at once."""
        return RayPending(self.name, self.handle.call.remote(method, *args))


class _Host:
    """The object in the process of an actor, whose methods it calls.

    Ray reports an error of a constructor only as text, so it is kept for the first call.
    """

    def __init__(self, cls: type, args: Sequence[Any]) -> None:
        self._failure: Exception | None = None
        if "torch" in sys.modules:  # `cls` needs it, and may make an optimizer
            delay_unused_imports()
        try:
            self._object = cls(*args)
        except Exception as error:
            error.add_note(traceback.format_exc())
            self._failure = error

    def call(self, method: str, *args: Any) -> Any:
        if self._failure:
            raise self._failure
        try:
            return getattr(self._object, method)(*args)
        except Exception as error:
            error.add_note(traceback.format_exc())  # the caller receives the error without it
            raise


class RayEngine:
    """Actors on a cluster of Ray: one that is running, or one of its own on this machine.

    A cluster of its own listens on the loopback interface only, asks for a token, and ends with
    this process, whatever this process dies of. A cluster that is running is never stopped: only
    the actors of this engine are. Its token is taken from RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH,
    with RAY_AUTH_MODE=token, and this machine has to be one of its nodes.

    There is at most one engine in a process at a time. Make it in a thread that lasts as long as
    the engine: the kernel ends the cluster together with that thread.

    Args:
        address: HOST:PORT of the cluster; None starts one.
        actors: The largest number of actors at the same time. Each has a place from the beginning.
        threads: The number of threads that each actor computes with, and the CPUs it is given.

    Raises:
        ConfigError: The cluster cannot be used; it says why.
        ConnectionError: The cluster of its own did not start, or would be reachable from other
            machines.
    """

    def __init__(self, address: str | None, *, actors: int, threads: int) -> None:
        self._actors: dict[str, RayActor] = {}  # those that have not been killed, by name
        self._own: _PrivateCluster | None = None
        self._places: PlacementGroup | None = None
        self._num_places, self._threads = actors, threads
        atexit.register(self.close)
        try:
            of_actors = {
                **{name: str(threads) for name in POOL_SIZES},
                **{name: os.environ[name] for name in WAITING if name in os.environ},
            }
            self._runtime_env: dict[str, Any] = {}
            if address is None:
                # Actors inherit it. A runtime environment would cost each of them half a second.
                of_actors["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
                self._own = _PrivateCluster()
                _start_cluster(self._own, of_actors, num_cpus=actors * threads)
            else:
                self._runtime_env = {"env_vars": of_actors}  # its nodes have been started before
                _join_cluster(address)
            _local_servers.processes = _find_servers()
            self._places = placement_group([{"CPU": threads}] * actors, strategy="SPREAD")
            if not self._places.wait(PLACED_WITHIN_S):
                free = ray.available_resources().get("CPU", 0)
                raise ConfigError(
                    f"train.servers.address: the Ray cluster at {address} has no room for {actors} "
                    f"actors, each with this number of CPUs: {threads} ({free:g} are free). Add "
                    "nodes, or lower train.servers.servers or train.servers.workers"
                )
        except BaseException:
            self.close()
            raise

    @classmethod
    def for_run(cls, params: Train) -> "RayEngine":
        """Make the engine of a run, with places for all of its actors.

        On a cluster each actor has the threads that `train.threads` says, 1 for `auto`. On this
        machine `auto` shares the CPUs among the workers.
        """
        options = params.servers
        threads = 1 if params.threads == "auto" else params.threads
        if params.threads == "auto" and options.address is None:
            threads = max(1, thread_limit() // options.workers)
        actors = options.servers + options.workers + len(OTHER_ACTORS)
        return cls(options.address, actors=actors, threads=threads)

    def start(self, name: str, cls: type, *args: Any, concurrency: int = 1) -> RayActor:
        """Run `cls(*args)` in a process of its own, and return at once.

        An actor keeps its place until it is killed, also if it was lost.

        Raises:
            ConnectionError: The cluster has ended, or has lost the machine with the place.
            ValueError: There is an actor with this name, or no place, for which Ray would wait.
        """
        if name in self._actors or len(self._actors) == self._num_places:
            raise ValueError(
                f"{name} cannot be started beside {', '.join(self._actors)}: there are "
                f"{self._num_places} places, and names are unique. Kill a lost actor first"
            )
        _local_servers.check()
        with self._own.starting() if self._own else nullcontext():
            if not self._has_place():
                raise ConnectionError(
                    f"the Ray cluster has lost a machine, and has no place for {name}"
                )
            handle = (
                ray.remote(_Host)
                .options(
                    num_cpus=self._threads,
                    max_restarts=0,
                    max_task_retries=0,
                    max_concurrency=concurrency,
                    runtime_env=self._runtime_env,
                    scheduling_strategy=PlacementGroupSchedulingStrategy(self._places),
                )
                .remote(cls, args)
            )
        actor = RayActor(name, handle)
        self._actors[name] = actor
        return actor

    def _has_place(self) -> bool:
        """Wait until the cluster has the places that were asked for at the beginning."""
        try:
            return self._places is not None and self._places.wait(PLACED_WITHIN_S)
        except Exception:  # of no type of its own, where Ray has given the places up
            return False

    def kill(self, actor: Actor) -> None:
        """End an actor's process, whatever it does. Nothing happens if it has ended."""
        assert isinstance(actor, RayActor)
        ray.kill(actor.handle, no_restart=True)
        if self._actors.get(actor.name) is actor:  # not another one that has the name by now
            del self._actors[actor.name]

    def wait_any(self, pending: Sequence[Pending], timeout_s: float) -> list[Pending]:
        """Wait until a call is done or has failed, and return all such calls.

        Raises:
            ConnectionError: Ray has ended on this machine.
        """
        _local_servers.check()
        refs = [call.ref for call in pending if isinstance(call, RayPending)]
        ray.wait(refs, num_returns=1, timeout=timeout_s)
        ready = set(ray.wait(refs, num_returns=len(refs), timeout=0)[0])
        return [call for call, ref in zip(pending, refs, strict=True) if ref in ready]

    def close(self) -> None:
        """End all actors that this engine has started, and the cluster if it has started it."""
        atexit.unregister(self.close)
        # Those of its own cluster end with it. Ray would wait for an actor whose start the GCS does
        # not know, until Ray ends this process.
        if self._own is None and ray.is_initialized():
            with suppress(Exception):  # the cluster may be gone
                for actor in list(self._actors.values()):
                    self.kill(actor)
        self._actors.clear()
        _local_servers.processes = []
        ray.shutdown(wait_for_processes=self._own is not None)
        if self._own:
            self._own.end()
            self._own = None


def _find_servers() -> list[psutil.Process]:
    """Return Ray's processes on this machine that this process needs.

    On a cluster of its own they are its children; otherwise it is the raylet that it has joined.
    """
    children = [one for one in psutil.Process().children() if one.name() in SERVERS]
    if children:
        return children
    socket_name = ray._private.worker._global_node.raylet_socket_name
    found = []
    for process in psutil.process_iter(["name"]):
        with suppress(psutil.Error):  # it has ended, or is another user's
            if process.info["name"] == "raylet" and socket_name in " ".join(process.cmdline()):
                found.append(process)
    return found


class _PrivateCluster:
    """The folder of a cluster of our own, and the process that ends the cluster with this one.

    Only this user can read the folder. It contains a new token.
    """

    def __init__(self) -> None:
        short = len(tempfile.gettempdir()) <= MAX_FOLDER_LENGTH
        parent = tempfile.gettempdir() if short else "/tmp"  # noqa: S108
        self.folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=parent))  # with mode 0700
        self._watchdog = start_watchdog(self.folder)
        self.for_ray = self.folder / "ray"  # Ray gives everyone the right to write to its folder
        self.token = self.folder / TOKEN_FILE
        self.token.write_text(secrets.token_hex(32), encoding="ascii")

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Let the watchdog name the failure if this process ends in this block.

        Ray ends the process by `_exit` if the raylet is gone when it connects to it, or if the GCS
        is gone when it starts an actor.
        """
        mark = self.folder / STARTING_FILE
        mark.touch()
        try:
            yield
        finally:
            mark.unlink()

    def end(self) -> None:
        """Kill what is left of the cluster and remove its folder."""
        self._watchdog.communicate()


def _start_cluster(own: _PrivateCluster, of_actors: dict[str, str], *, num_cpus: int) -> None:
    """Start a cluster on this machine and connect to it.

    Args:
        own: Its folder and its watchdog.
        of_actors: Environment variables of its actors.
        num_cpus: The number of CPUs that it shares among actors.
    """
    before = _listening([psutil.Process()])
    settings = {
        "RAY_AUTH_MODE": "token",
        TOKEN_VARIABLE: str(own.token),
        "RAY_AUTH_TOKEN": None,
        "RAY_ENABLE_K8S_TOKEN_AUTH": None,
        # Its servers are never started again. The default is 60, after which Ray ends this process.
        "RAY_gcs_rpc_server_reconnect_timeout_s": "20",
        # Actors have the priority of any other training. Ray's default is nice 15, with which they
        # would hardly run where another process is busy.
        "RAY_worker_niceness": "0",
        # Ray would start processes ahead, and end those that get no actor.
        "RAY_prestart_worker_first_driver": "0",
        "SPT_NOENV": "1",  # a process that changes its title keeps its environment visible
    }
    with (
        _environment(**RAY_SETTINGS, **of_actors, **settings),
        _kept_signal_handler(),
        needed_processes_only(parameter, services),
        own.starting(),
    ):
        _read_authentication()
        try:
            ray.init(
                address="local",
                num_cpus=num_cpus,
                num_gpus=0,
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _node_ip_address=LOOPBACK,
                _temp_dir=str(own.for_ray),
            )
        except Exception as error:  # of no type of its own, where Ray has waited in vain
            raise ConnectionError(
                f"the Ray cluster on this machine did not start ({' '.join(str(error).split())}); "
                "was one of its processes killed, or did this machine run out of memory?"
            ) from None
    this = psutil.Process()
    reachable = [
        address
        for address in _listening([this, *this.children(recursive=True)]) - before
        if not _is_loopback(address)
    ]
    if reachable:
        raise ConnectionError(
            f"Ray {ray.__version__} listens beyond this machine: {', '.join(sorted(reachable))}. "
            f"It has been tested with ray=={RAY_VERSION} and this module as the first to import it"
        )


def _listening(processes: Sequence[psutil.Process]) -> set[str]:
    """Return the addresses, IP:PORT, where processes accept connections."""
    addresses = set()
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            addresses |= {
                f"{connection.laddr.ip}:{connection.laddr.port}"
                for connection in process.net_connections(kind="tcp")
                if connection.status == psutil.CONN_LISTEN
            }
    return addresses


def _is_loopback(address: str) -> bool:
    host = ip_address(address.rpartition(":")[0])
    return (getattr(host, "ipv4_mapped", None) or host).is_loopback


def _join_cluster(address: str) -> None:
    """Connect to a running cluster.

    Raises:
        ConfigError: It does not answer or refuses; it says why.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_WITHIN_S).close()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"train.servers.address: no Ray cluster answers at {address} ({error}); give the "
            "HOST:PORT of its head (port 6379 if it was not changed), or null to start one here"
        ) from None
    # By default Ray would try for 20 s, also if the token is wrong, and print each failure.
    quick = {"RAY_gcs_server_port_wait_time_s": "3", "RAY_BACKEND_LOG_LEVEL": "error"}
    with _environment(**quick), _kept_signal_handler():
        _read_authentication()
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ray.exceptions.RayError, RuntimeError, ConnectionError) as error:
            ray.shutdown()
            raise ConfigError(
                f"train.servers.address: cannot join the Ray cluster at {address}: "
                f"{_refusal_of(error)}"
            ) from None


def _refusal_of(error: Exception) -> str:
    """Return in one line why Ray did not join a cluster."""
    text = f"{error} {error.__cause__ or ''}"
    if isinstance(error, ray.exceptions.AuthenticationError) or "InvalidAuthToken" in text:
        return (
            "it refuses the token. Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH as on its nodes"
        )
    if "No node info found" in text:
        return (
            "this machine is not one of its nodes. Run this in one of its pods, or first: "
            "ray start --address=HOST:PORT --num-cpus=0"
        )
    return " ".join(text.split())


def _read_authentication() -> None:
    """Let Ray read the mode and the token of authentication from the environment again.

    Ray reads them once in a process, where an engine with another token may have been before.
    """
    ray._raylet.Config.initialize("")
    ray._raylet.AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _kept_signal_handler() -> Iterator[None]:
    """Keep the handler of SIGTERM, which `ray.init` replaces by its own."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
