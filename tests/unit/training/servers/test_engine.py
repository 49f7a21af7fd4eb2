import pickle

from training.servers.engine import ActorLost


def test_the_loss_of_an_actor_keeps_its_name_in_another_process() -> None:
    error = pickle.loads(pickle.dumps(ActorLost("server 1", "its machine is gone")))
    assert (error.actor, str(error)) == ("server 1", "server 1 was lost: its machine is gone")
