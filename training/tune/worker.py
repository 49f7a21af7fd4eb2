"""A warm worker process: it imports the training code once and then runs any number of trials."""

from multiprocessing.connection import Connection

from common.startup import search_garbage_less_often
from training.tune.trial import Task, run_trial


def work(pipe: Connection) -> None:
    """Run the tasks that come through a pipe, until it is closed.

    Each answer is the outcome, or the exception if it is an error that ends the study.

    Args:
        pipe: The pipe to the coordinator.
    """
    search_garbage_less_often()
    while True:
        try:
            task: Task = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(run_trial(task))
        except Exception as error:
            pipe.send(error)
