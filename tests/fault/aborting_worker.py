"""A worker that aborts at Python's shutdown, as a thread of a library can."""

import atexit
import os
import sys
from pathlib import Path

from training.worker import main

if __name__ == "__main__":
    atexit.register(os.abort)
    main(Path(sys.argv[1]), sys.argv[2])
