"""Which errors are worth a retry."""

import os

import pytest

from common.config.loading import ConfigError
from common.files import DataError
from common.retry import is_worth_retrying
from common.subprocess_tree import CommandFailed


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (DataError("the log is empty"), False),
        (ConfigError("no such key"), False),
        (CommandFailed(["clickmill"], os.EX_DATAERR, []), False),
        (CommandFailed(["clickmill"], os.EX_CONFIG, []), False),
        (CommandFailed(["clickmill"], 1, []), True),
        (CommandFailed(["clickmill"], -9, []), True),
        (ConnectionError("no route"), True),
        (MemoryError(), True),
        (ValueError("neither of the two above"), True),
    ],
    ids=repr,
)
def test_only_faults_of_data_and_configuration_are_not_retried(
    error: Exception, expected: bool
) -> None:
    assert is_worth_retrying(error) is expected
