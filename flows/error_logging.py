"""Errors that the user can mend are told as their message; how a flow came upon them is no news."""

import logging

from common.config.params import ConfigError
from common.files import DataError
from common.subprocess_tree import CommandFailed
from flows.locks import LockedError
from flows.nightly.git import GitError

MENDABLE = (CommandFailed, ConfigError, ConnectionError, DataError, GitError, LockedError)


def errors_in_one_line() -> None:
    """Have Prefect's loggers leave out the traceback of such errors, and of a task all but its state, which is an error's record as well.

    Once is enough; more does no harm.
    """
    logging.getLogger("prefect.flow_runs").addFilter(_without_traceback)
    logging.getLogger("prefect.task_runs").addFilter(lambda record: not _is_mendable(record))


def _without_traceback(record: logging.LogRecord) -> bool:
    if _is_mendable(record):
        record.exc_info = None
    return True


def _is_mendable(record: logging.LogRecord) -> bool:
    return bool(record.exc_info and isinstance(record.exc_info[1], MENDABLE))
