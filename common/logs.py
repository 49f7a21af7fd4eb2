"""Log lines of the stages: the standard `logging`, with one format.

A line is `STAGE     message`, as in `train     resumes at step 1,200`. From WARNING on, the level
comes before the message: `train     warning: ...`.
"""

import logging
import sys
from typing import TextIO

from common.masking import mask_passwords
from common.printable import printable, printable_lines

ROOT_LOGGER = "clickmill"


def get_logger(stage: str) -> logging.Logger:
    """Return the logger of a stage or command, such as `train`."""
    return logging.getLogger(f"{ROOT_LOGGER}.{stage}")


def configure_logging(level: int = logging.INFO) -> None:
    """Print the log lines of all stages to standard output. A second call changes only the level.

    The command line and the ranks of a training call this. A program that imports these packages
    may configure `logging` itself instead.
    """
    logger = logging.getLogger(ROOT_LOGGER)
    logger.setLevel(level)
    if not any(isinstance(handler, StdoutHandler) for handler in logger.handlers):
        handler = StdoutHandler()
        handler.setFormatter(StageFormatter())
        logger.addHandler(handler)
        logger.propagate = (
            False  # Prefect has a handler at the root, which would print each line a second time
        )


class StageFormatter(logging.Formatter):
    """Formats a record as `STAGE     message`, from WARNING on with the level."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        stage = record.name.removeprefix(f"{ROOT_LOGGER}.")
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        # A value from a log cannot begin a line of its own. A traceback has several lines.
        message, line_break, trace = super().format(record), "", ""
        if record.exc_info or record.stack_info:
            length = len(record.message)
            message, line_break, trace = message[:length], "\n", message[length + 1 :]
        message, trace = printable(mask_passwords(message)), printable_lines(mask_passwords(trace))
        return f"{stage:<9} {level}{message}{line_break}{trace}"


class StdoutHandler(logging.StreamHandler[TextIO]):
    """Writes to the present `sys.stdout`, which a progress bar or a test may have replaced."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """The present standard output."""
        return sys.stdout
