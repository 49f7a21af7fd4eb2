"""Errors that the user can mend are told as their message; how a flow came upon them is no news."""

import logging

from features.files import DataError
from features.params import ConfigError
from flows.lock import LockedError
from flows.nights.git import GitError
from training.launch import CommandFailed

MENDABLE = (CommandFailed, ConfigError, DataError, GitError, LockedError)


def errors_in_one_line() -> None:
    """Have Prefect's loggers of runs leave out the traceback of such errors. Once is enough; more does no harm."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_one_line)


def _one_line(record: logging.LogRecord) -> bool:
    if record.exc_info and isinstance(record.exc_info[1], MENDABLE):
        record.exc_info = None
    return True
