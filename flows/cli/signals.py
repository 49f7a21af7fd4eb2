"""How commands react to signals."""

import signal
import sys


def exit_on_sigterm() -> None:
    """Turn SIGTERM into an exit, which stops child processes and cleans up."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
