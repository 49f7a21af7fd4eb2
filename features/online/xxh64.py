"""XXH64 with seed 0 of short texts, with NumPy, for the hash buckets of a request.

The specification is doc/xxhash_spec.md of github.com/Cyan4973/xxHash. N is the number of texts.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from features.online.value_readers import UnusualError

PRIME_1 = np.uint64(0x9E3779B185EBCA87)
PRIME_2 = np.uint64(0xC2B2AE3D27D4EB4F)
PRIME_3 = np.uint64(0x165667B19E3779F9)
PRIME_4 = np.uint64(0x85EBCA77C2B2AE63)
PRIME_5 = np.uint64(0x27D4EB2F165667C5)
LOW_HALF, LOW_BYTE = np.uint64(0xFFFF_FFFF), np.uint64(0xFF)
WORD_BYTES = 8
MAX_BYTES = 31  # of a text that is shorter than a stripe, which is hashed otherwise
STRIPE_BYTES = 32

Hashes = NDArray[np.uint64]


def xxh64(texts: Sequence[str]) -> Hashes:
    """Return the hash of each text (N,).

    Raises:
        UnusualError: A text has more than 31 bytes.
    """
    encoded = [text.encode() for text in texts]
    lengths = np.array(list(map(len, encoded)), np.int64)
    longest = int(lengths.max())
    if longest > MAX_BYTES:
        raise UnusualError
    padded = b"".join([text.ljust(STRIPE_BYTES, b"\0") for text in encoded])
    words = np.frombuffer(padded, "<u8").reshape(-1, STRIPE_BYTES // WORD_BYTES)
    num_words, num_rest = np.divmod(lengths, WORD_BYTES)
    hashes = PRIME_5 + lengths.astype(np.uint64)
    for k in range(longest // WORD_BYTES):
        lane = _rotated(words[:, k] * PRIME_2, 31) * PRIME_1
        mixed = _rotated(hashes ^ lane, 27) * PRIME_1 + PRIME_4
        hashes = np.where(k < num_words, mixed, hashes)
    rest = words[np.arange(len(words)), num_words]
    has_half = num_rest >= WORD_BYTES // 2
    mixed = _rotated(hashes ^ (rest & LOW_HALF) * PRIME_1, 23) * PRIME_2 + PRIME_3
    hashes = np.where(has_half, mixed, hashes)
    rest = np.where(has_half, rest >> np.uint64(32), rest)
    for k in range(WORD_BYTES // 2 - 1):
        byte = rest >> np.uint64(8 * k) & LOW_BYTE
        mixed = _rotated(hashes ^ byte * PRIME_5, 11) * PRIME_1
        hashes = np.where(k < num_rest % (WORD_BYTES // 2), mixed, hashes)
    hashes = (hashes ^ hashes >> np.uint64(33)) * PRIME_2
    hashes = (hashes ^ hashes >> np.uint64(29)) * PRIME_3
    hashed: Hashes = hashes ^ hashes >> np.uint64(32)
    return hashed


def _rotated(words: Hashes, num_bits: int) -> Hashes:
    rotated: Hashes = words << np.uint64(num_bits) | words >> np.uint64(64 - num_bits)
    return rotated
