"""Small functions on numbers that several rooms use."""


def ceil_div(numerator: int, denominator: int) -> int:
    """Divide two integers and round up."""
    return -(-numerator // denominator)
