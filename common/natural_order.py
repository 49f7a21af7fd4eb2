"""The natural order of names and relative paths: day_2 before day_10."""

import re


def natural_order_key(name: str) -> list[tuple[bool, int, str]]:
    """Return the key by which names are sorted in natural order.

    A folder's files stay together: `/` comes before every other character.
    """
    name = name.replace("/", "\0")
    return [
        (part.isdecimal(), int(part) if part.isdecimal() else 0, part)
        for part in re.split(r"(\d+)", name)
    ]
