"""Small functions on numbers."""

from itertools import accumulate

MAX_EXACT = 2**53  # below it, each whole number is a float64 of its own


def ceil_div(numerator: int, denominator: int) -> int:
    """Divide two integers and round up, exactly for integers of any size."""
    return -(-numerator // denominator)


def bounds_of_equal_parts(num_items: int, num_parts: int) -> list[int]:
    """Cut items into consecutive parts of equal size, and return the num_parts + 1 bounds.

    The first parts have one item more if the number of items is not divisible.
    """
    size, num_larger = divmod(num_items, num_parts)
    return [0, *accumulate([size + 1] * num_larger + [size] * (num_parts - num_larger))]
