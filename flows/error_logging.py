"""How Prefect logs the errors that a user can mend: as their message, without a traceback."""

import logging

from common.config.loading import ConfigError
from common.files import DataError
from common.subprocess_tree import CommandFailed
from flows.git_commands import GitError
from flows.locks import LockedError

EXPECTED_ERRORS = (CommandFailed, ConfigError, DataError, GitError, LockedError, OSError)


def log_expected_errors_in_one_line() -> None:
    """Let Prefect's loggers leave out the traceback of expected errors, and repeat less of them.

    For a task only its state is logged, which contains the message. A second call changes nothing.
    """
    logging.getLogger("prefect.flow_runs").addFilter(_remove_traceback)
    logging.getLogger("prefect.task_runs").addFilter(_drop_expected_error)


def _remove_traceback(record: logging.LogRecord) -> bool:
    if _is_expected(record):
        record.exc_info = None
    return True


def _drop_expected_error(record: logging.LogRecord) -> bool:
    return not _is_expected(record)


def _is_expected(record: logging.LogRecord) -> bool:
    return bool(record.exc_info and isinstance(record.exc_info[1], EXPECTED_ERRORS))
