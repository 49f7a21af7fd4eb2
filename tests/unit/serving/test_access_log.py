"""The log of the server, where nobody reads it."""

import logging
import os
import threading
from contextlib import suppress

from serving.access_log import PatientHandler


def test_a_log_that_nobody_reads_holds_nothing_up() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(1 << 10))
    os.set_blocking(writer, True)
    with os.fdopen(reader, "rb", buffering=0) as log, os.fdopen(writer, "w") as stream:
        handler = PatientHandler(stream)
        record = logging.makeLogRecord({"msg": "a line"})
        thread = threading.Thread(target=handler.emit, args=(record,), daemon=True)
        thread.start()
        thread.join(5)
        is_held_up = thread.is_alive()
        log.read(1 << 20)
        handler.emit(record)
        thread.join()
        assert log.read(1 << 20).endswith(b"a line\n")
        assert not is_held_up
