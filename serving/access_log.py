"""The access log: one JSON object a line for each request, on standard output.

It has no values of features. Lines are collected and written by a thread, so that a slow reader of
the log cannot hold up an answer; if it is too slow, lines are dropped and counted.
"""

import asyncio
import logging
import os
import select
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO

import orjson

from common.masking import mask_passwords
from common.printable import printable

WRITE_EVERY_S = 0.2
MAX_LINES = 10_000  # that wait to be written


class AccessLog:
    """Collects lines, and writes them a few times a second.

    Args:
        descriptor: Where to write.
        on_drop: It is called with the number of lines that are dropped.
    """

    def __init__(self, descriptor: int, on_drop: Callable[[int], None]) -> None:
        self._descriptor = descriptor
        self._on_drop = on_drop
        self._lines: list[bytes] = []

    def add(self, line: dict[str, Any]) -> None:
        """Add a line."""
        if len(self._lines) < MAX_LINES:
            self._lines.append(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        else:
            self._on_drop(1)

    async def run(self) -> None:
        """Write what was added, until it is cancelled; then write the rest."""
        try:
            while True:
                await asyncio.sleep(WRITE_EVERY_S)
                if self._lines:
                    await asyncio.to_thread(self._write, self._take())
        finally:
            self._write(self._take())

    def _take(self) -> bytes:
        lines, self._lines = self._lines, []
        return b"".join(lines)

    def _write(self, text: bytes) -> None:
        try:
            while text:
                text = text[os.write(self._descriptor, text) :]
        except OSError:  # nobody reads it any more
            self._on_drop(text.count(b"\n"))


def now() -> str:
    """Return the time in UTC, as of ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON, as the lines of the access log."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        line: dict[str, Any] = {
            "time": now(),
            "level": record.levelname.lower(),
            "process": record.process,
            "message": printable(mask_passwords(record.getMessage())),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()


class PatientHandler(logging.StreamHandler[TextIO]):
    """Writes lines, except while whoever reads the log takes none.

    To wait for that reader would hold up the answers, and the end of the server.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record if that is possible at once."""
        _, is_writable, _ = select.select([], [self.stream], [], 0)
        if is_writable:
            super().emit(record)


def log_as_json() -> None:
    """Log the lines of this server and of uvicorn as JSON to standard output."""
    handler = PatientHandler(sys.stdout)
    handler.setFormatter(JsonFormatter())
    for name, level in (("clickmill", logging.INFO), ("uvicorn", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(level)
