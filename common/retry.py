"""The rule that decides which errors are worth a retry."""

from common.config.loading import ConfigError
from common.files import DataError
from common.subprocess_tree import CommandFailed


def is_worth_retrying(error: object) -> bool:
    """Return whether the same work may succeed at another try.

    It cannot when the user's data or configuration is at fault: a ConfigError, a DataError, or a
    command that reports one of these by its exit code. Everything else may pass: a network that was
    away, a machine that ran out of memory.
    """
    if isinstance(error, CommandFailed):
        return not (error.is_data_fault or error.is_config_fault)
    return not isinstance(error, ConfigError | DataError)
