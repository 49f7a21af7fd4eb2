"""The sizes of the data caches of this machine's first processor."""

from pathlib import Path

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
UNITS = {"K": 1 << 10, "M": 1 << 20}


def system_caches(directory: Path = CACHES) -> dict[str, int]:
    """Read the data caches that Linux reports.

    Args:
        directory: The folder of sysfs with a folder index* for each cache.

    Returns:
        Name (L1, L2, ...) -> size in bytes; empty where the folder does not exist.
    """
    caches = {}
    for index in sorted(directory.glob("index*")):
        if (index / "type").read_text().strip() != "Instruction":
            size = (index / "size").read_text().strip()
            num_bytes = int(size.rstrip("KM")) * UNITS.get(size[-1], 1)
            caches["L" + (index / "level").read_text().strip()] = num_bytes
    return caches
