"""XXH64 with seed 0 of short texts in plain Python, for the hash buckets of single values.

The specification is doc/xxhash_spec.md of github.com/Cyan4973/xxHash.
"""

from features.online.value_readers import UnusualError

MASK = 2**64 - 1
PRIME_1 = 0x9E3779B185EBCA87
PRIME_2 = 0xC2B2AE3D27D4EB4F
PRIME_3 = 0x165667B19E3779F9
PRIME_4 = 0x85EBCA77C2B2AE63
PRIME_5 = 0x27D4EB2F165667C5
MAX_BYTES = 31  # of a text without stripes of 32 bytes


def xxh64(data: bytes) -> int:
    """Return the hash of at most 31 bytes.

    Raises:
        UnusualError: There are more bytes.
    """
    if len(data) > MAX_BYTES:
        raise UnusualError
    num_bytes = len(data)
    hashed, start = PRIME_5 + num_bytes, 0
    while start + 8 <= num_bytes:
        lane = int.from_bytes(data[start : start + 8], "little") * PRIME_2 & MASK
        hashed ^= _rotated(lane, 31) * PRIME_1 & MASK
        hashed = (_rotated(hashed, 27) * PRIME_1 + PRIME_4) & MASK
        start += 8
    if start + 4 <= num_bytes:
        hashed ^= int.from_bytes(data[start : start + 4], "little") * PRIME_1 & MASK
        hashed = (_rotated(hashed, 23) * PRIME_2 + PRIME_3) & MASK
        start += 4
    for byte in data[start:]:
        hashed ^= byte * PRIME_5 & MASK
        hashed = _rotated(hashed, 11) * PRIME_1 & MASK
    hashed = (hashed ^ hashed >> 33) * PRIME_2 & MASK
    hashed = (hashed ^ hashed >> 29) * PRIME_3 & MASK
    return hashed ^ hashed >> 32


def _rotated(value: int, num_bits: int) -> int:
    return (value << num_bits | value >> 64 - num_bits) & MASK
