"""The engine on Ray: what it starts, what it lets nobody reach, and how errors arrive."""

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.factories.ray_actors import Box
from tests.factories.ray_optimizer import OptimizerBox
from tests.factories.support import ROOT
from training.servers.engine import ActorLost

if not find_spec("ray"):
    pytest.skip("`make test-servers` installs Ray", allow_module_level=True)

from training.servers.ray_engine import OBJECT_STORE_BYTES, RAY_VERSION, RayActor, RayEngine, ray
from training.servers.ray_watchdog import TOKEN_FILE, TOKEN_VARIABLE, processes_of

pytestmark = pytest.mark.servers
THREADS = 2
# A client with the address of the cluster as its argument: it fails if it cannot list the nodes.
CLIENT = """
import sys, ray
client = ray._raylet.GcsClient(address=sys.argv[1])
print(len(client.get_all_node_info()), "nodes")
"""


@pytest.fixture(scope="module")
def engine() -> Iterator[RayEngine]:
    """An engine with room for six actors at a time."""
    engine = RayEngine(None, actors=6, threads=THREADS)
    yield engine
    engine.close()


@pytest.fixture
def box(engine: RayEngine) -> Iterator[RayActor]:
    """An actor."""
    actor = engine.start("box", Box)
    yield actor
    engine.kill(actor)


@pytest.fixture
def other(engine: RayEngine) -> Iterator[RayActor]:
    """Another actor."""
    actor = engine.start("other", Box)
    yield actor
    engine.kill(actor)


def folder_of(engine: RayEngine) -> Path:
    """Return the temporary folder of an engine's own cluster."""
    assert engine._own
    return engine._own.folder


def listening(pids: set[int]) -> set[str]:
    """Return the addresses where these processes accept TCP connections."""
    return {
        f"{connection.laddr.ip} {connection.laddr.port}"
        for connection in psutil.net_connections("tcp")
        if connection.pid in pids and connection.status == psutil.CONN_LISTEN
    }


def test_the_version_is_the_locked_one() -> None:
    locked = (ROOT / "requirements" / "servers.in").read_text()
    assert ray.__version__ == RAY_VERSION
    assert f"ray=={RAY_VERSION} " in locked


def test_no_process_listens_beyond_this_machine(
    engine: RayEngine, box: RayActor, other: RayActor
) -> None:
    box.call("ask", other, "pid").result()
    cluster = {process.pid for process in processes_of(folder_of(engine))}
    addresses = listening({*cluster, os.getpid()})
    assert len(addresses) >= 7  # this process, the GCS, twice the raylet, an agent, two actors
    hosts = {address.split()[0] for address in addresses}
    assert hosts <= {"127.0.0.1", "::ffff:127.0.0.1"}, addresses


def test_all_processes_belong_to_the_cluster_of_this_folder(
    engine: RayEngine, box: RayActor
) -> None:
    """The watchdog would not find another one. The watchdog itself is none of the cluster."""
    box.call("pid").result()
    children = {process.pid for process in psutil.Process().children(recursive=True)}
    cluster = {process.pid for process in processes_of(folder_of(engine))}
    assert engine._own
    assert children == {*cluster, engine._own._watchdog.pid}


def test_no_process_reports_usage_or_asks_for_the_cloud(engine: RayEngine) -> None:
    commands = [process.cmdline() for process in processes_of(folder_of(engine))]
    assert any("gcs_server" in command[0] for command in commands)
    scripts = " ".join(word for command in commands for word in command if word.endswith(".py"))
    assert not [one for one in ("dashboard", "monitor") if f"{one}.py" in scripts]
    environments = [process.environ() for process in processes_of(folder_of(engine))]
    assert {one["RAY_USAGE_STATS_ENABLED"] for one in environments} == {"0"}


def test_others_can_read_neither_the_folder_nor_the_token(engine: RayEngine) -> None:
    folder = folder_of(engine)
    token = (folder / TOKEN_FILE).read_text()
    assert len(token) == 64
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    command_lines = subprocess.check_output(["ps", "-ewwo", "args"], text=True)
    assert str(folder) in command_lines
    assert token not in command_lines
    assert TOKEN_VARIABLE not in os.environ


@pytest.mark.parametrize("token", ["right", "wrong", None])
def test_the_cluster_demands_its_token(engine: RayEngine, token: str | None) -> None:
    right = (folder_of(engine) / TOKEN_FILE).read_text()
    environment = {**os.environ, "RAY_AUTH_MODE": "token" if token else "disabled"}
    if token:
        environment["RAY_AUTH_TOKEN"] = right if token == "right" else "0" * 64
    address = ray.get_runtime_context().gcs_address
    client = subprocess.run(
        [sys.executable, "-c", CLIENT, address],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    if token == "right":
        assert client.stdout == "1 nodes\n"
    else:
        assert client.returncode != 0
        assert "InvalidAuthToken" in client.stderr


def test_the_object_store_is_small_and_larger_messages_still_arrive(
    engine: RayEngine, box: RayActor
) -> None:
    assert ray.cluster_resources()["object_store_memory"] == OBJECT_STORE_BYTES
    message = np.arange(OBJECT_STORE_BYTES // 8 + 1000, dtype=np.int64)
    np.testing.assert_array_equal(box.call("echo", message).result(), message)


@pytest.mark.parametrize("size", [3, 100_000])
def test_arrays_arrive_read_only(box: RayActor, size: int) -> None:
    assert not box.call("is_writeable", np.zeros(size)).result()
    assert not box.call("echo", np.zeros(size)).result().flags.writeable


def test_an_actor_has_its_number_of_threads_and_imports_this_code(box: RayActor) -> None:
    environment = box.call("environment").result()
    assert environment["OMP_NUM_THREADS"] == environment["POLARS_MAX_THREADS"] == str(THREADS)
    assert str(ROOT) in environment["PYTHONPATH"].split(os.pathsep)


def test_an_actor_has_the_priority_of_this_process(box: RayActor) -> None:
    assert psutil.Process(box.call("pid").result()).nice() == psutil.Process().nice()


def test_an_actor_imports_only_what_its_class_needs(box: RayActor) -> None:
    assert box.call("has_imported", "ray").result()
    assert not box.call("has_imported", "torch").result()


def test_an_optimizer_in_an_actor_imports_no_compiler(engine: RayEngine) -> None:
    actor = engine.start("optimizer", OptimizerBox)
    assert not actor.call("has_imported", "torch._dynamo.eval_frame").result()
    engine.kill(actor)


def test_calls_run_one_after_the_other_in_the_order_of_their_sending(box: RayActor) -> None:
    calls = [box.call("keep", k, 0.3 if k == 0 else 0.0) for k in range(20)]
    assert calls[-1].result() == list(range(20))


def test_calls_run_at_the_same_time_where_that_is_allowed(engine: RayEngine) -> None:
    box = engine.start("box", Box, concurrency=2)
    for call in [box.call("meet"), box.call("meet")]:
        call.result()
    engine.kill(box)


def test_an_error_of_a_method_arrives_as_it_is(box: RayActor) -> None:
    with pytest.raises(LookupError) as caught:
        box.call("fail").result()
    assert type(caught.value) is LookupError
    assert caught.value.args == ("not in the box",)
    assert "in fail" in caught.value.__notes__[0]  # where it was raised
    assert isinstance(box.call("pid").result(), int)


def test_an_error_of_a_constructor_arrives_with_each_call(engine: RayEngine) -> None:
    box = engine.start("broken", Box, "no box")
    for _ in range(2):
        with pytest.raises(LookupError) as caught:
            box.call("pid").result()
        assert caught.value.args == ("no box",)
    engine.kill(box)


@pytest.mark.parametrize("end", ["kill", "signal", "while it answers"])
def test_an_actor_that_has_ended_is_named(engine: RayEngine, box: RayActor, end: str) -> None:
    pid = box.call("pid").result()
    pending = box.call("end" if end == "while it answers" else "spin")
    if end == "kill":
        engine.kill(box)
    elif end == "signal":
        os.kill(pid, signal.SIGKILL)
    for call in (pending, box.call("pid")):
        with pytest.raises(ActorLost, match=r"^box was lost: .+") as caught:
            call.result()
        assert caught.value.actor == "box"
        assert "\n" not in str(caught.value)
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=10)
    assert not psutil.pid_exists(pid)
    engine.kill(box)  # nothing happens


def test_the_actor_that_was_lost_first_is_named(
    engine: RayEngine, box: RayActor, other: RayActor
) -> None:
    """A worker whose server is lost has to be told apart from a worker that is lost."""
    pid = other.call("pid").result()
    pending = box.call("ask", other, "sleep", 1000.0)
    time.sleep(0.5)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ActorLost) as caught:
        pending.result()
    assert caught.value.actor == "other"
    assert isinstance(box.call("pid").result(), int)  # the worker itself goes on
    third = engine.start("third", Box)
    with pytest.raises(ActorLost) as caught:
        third.call("ask", box, "ask", other, "pid").result()
    assert caught.value.actor == "other"
    engine.kill(third)


def test_a_place_is_free_again_after_the_end_of_its_actor(engine: RayEngine) -> None:
    lost: list[RayActor] = []
    for _ in range(2):
        actors = [engine.start(f"box {k}", Box) for k in range(6)]
        assert len({actor.call("pid").result() for actor in actors}) == 6
        for earlier in lost:
            engine.kill(earlier)  # does not concern the actor that has its name by now
        with pytest.raises(ValueError, match="one more cannot be started beside box 0, box 1"):
            engine.start("one more", Box)
        for actor in actors:
            engine.kill(actor)
        lost = actors


def test_waiting_returns_all_calls_that_are_done_or_have_failed(
    engine: RayEngine, box: RayActor, other: RayActor
) -> None:
    box.call("pid").result()
    other.call("pid").result()
    begin_s = time.monotonic()
    slow = other.call("sleep", 2.0)
    done, failed = box.call("echo", 1), box.call("fail")
    with pytest.raises(LookupError):
        failed.result()
    assert engine.wait_any([slow, done, failed], 10.0) == [done, failed]
    assert engine.wait_any([slow], 0.1) == []
    assert engine.wait_any([slow], 10.0) == [slow]
    assert 2.0 <= time.monotonic() - begin_s < 9.0
    assert engine.wait_any([done, slow], 0.0) == [done, slow]


def test_this_process_keeps_its_handler_and_its_environment(engine: RayEngine) -> None:
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert not [name for name in os.environ if name.startswith(("RAY_AUTH", "RAY_gcs", "SPT_"))]


def test_the_port_of_the_cluster_is_closed_to_other_addresses(engine: RayEngine) -> None:
    port = int(ray.get_runtime_context().gcs_address.rpartition(":")[2])
    own = [
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET and not address.address.startswith("127.")
    ]
    if not own:
        pytest.skip("this machine has the loopback interface only")
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
    with pytest.raises(OSError, match=r"refused|timed out"):
        socket.create_connection((own[0], port), timeout=5)
