import pickle
import subprocess
import sys

from training.servers.engine import ActorLost


def test_the_loss_of_an_actor_keeps_its_name_in_another_process() -> None:
    error = pickle.loads(pickle.dumps(ActorLost("server 1", "its machine is gone")))
    assert (error.actor, str(error)) == ("server 1", "server 1 was lost: its machine is gone")


def test_actors_do_without_lightning() -> None:
    """Each actor is a process of its own, and to import Lightning takes seconds and memory."""
    names = ("coordinator", "table_server", "dense_server", "worker")
    imports = "; ".join(f"import training.servers.{name}" for name in names)
    code = (
        f"{imports}; import sys; print({{'pytorch_lightning', 'torchmetrics'}} & {{*sys.modules}})"
    )
    output = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert output == "set()\n"


def test_the_coordinator_does_without_torch() -> None:
    code = "import training.servers.coordinator, sys; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"
