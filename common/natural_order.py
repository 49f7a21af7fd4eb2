"""The natural order of names: day_2 before day_10."""

import re


def natural_order_key(name: str) -> list[tuple[bool, int, str]]:
    """Return the key by which names are sorted in natural order."""
    return [
        (part.isdecimal(), int(part) if part.isdecimal() else 0, part)
        for part in re.split(r"(\d+)", name)
    ]
