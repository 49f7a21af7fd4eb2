"""A warm worker process: it imports the training code once and then runs any number of trials."""

from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from common.startup import search_garbage_less_often
from training.adapters.unused_imports import delay_unused_imports

if TYPE_CHECKING:
    from training.tune.trial import Task


def work(pipe: Connection) -> None:
    """Run the tasks that come through a pipe, until it is closed.

    Each answer is the outcome, or the exception if it is an error that ends the study.

    Args:
        pipe: The pipe to the coordinator.
    """
    search_garbage_less_often()
    delay_unused_imports()
    from training.tune.trial import run_trial

    while True:
        try:
            task: Task = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(run_trial(task))
        except Exception as error:
            pipe.send(error)
