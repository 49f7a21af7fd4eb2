"""A warm worker process: it imports the training code once and then runs any number of trials."""

import os
from multiprocessing.connection import Connection

from common.startup import search_garbage_less_often
from common.subprocess_tree import die_with_parent
from training.tune.trial import Task, run_trial


def work(pipe: Connection, parent: int) -> None:
    """Run the tasks that come through a pipe, until it is closed.

    Each answer is a float, the share of the run that is done, or the outcome. An error that ends
    the study is sent as the exception.

    Args:
        pipe: The pipe to the coordinator.
        parent: The process id of the coordinator, without which this process ends.
    """
    die_with_parent(parent)
    search_garbage_less_often()
    while True:
        try:
            task: Task = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(run_trial(task, pipe.send))
        except Exception as error:
            pipe.send(error)


def set_environment() -> None:
    """Set the variables that OpenMP reads when the worker imports torch.

    With OpenMP's default, a thread that waits uses its core fully, and trials run beside each
    other: two threads each were measured to be 8 to 15 times as slow as one.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
