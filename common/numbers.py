"""Small functions on numbers."""


def ceil_div(numerator: int, denominator: int) -> int:
    """Divide two integers and round up, exactly for integers of any size."""
    return -(-numerator // denominator)
