"""Errors that the user can mend are told as their message; how a flow came upon them is no news, and it says them again as its state."""

import logging

from features.files import DataError
from features.params import ConfigError
from flows.lock import LockedError
from flows.nights.git import GitError
from training.launch import CommandFailed

MENDABLE = (CommandFailed, ConfigError, DataError, GitError, LockedError)


def errors_told_once() -> None:
    """Have Prefect's loggers of runs leave out their accounts of such errors: the state that follows has the message, without a traceback.

    Once is enough; more does no harm.
    """
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], MENDABLE))
