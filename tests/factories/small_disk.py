"""A file system of a known size, to fill it."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(place: Path, num_bytes: int) -> Iterator[Callable[[int], None]]:
    """Mount a file system in memory, and yield a function that leaves a number of bytes free on it.

    The test is skipped where nothing can be mounted.

    Args:
        place: The folder, which is made.
        num_bytes: The size of the file system.
    """
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", place]
    if os.geteuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("only root can mount a file system of a known size")

    def leave(num_free: int) -> None:
        status = os.statvfs(place)
        size = (status.f_blocks - status.f_bfree) * status.f_frsize + num_free
        subprocess.run(["mount", "-o", f"remount,size={size}", place], check=True)

    try:
        yield leave
    finally:
        subprocess.run(["umount", place], check=True)
