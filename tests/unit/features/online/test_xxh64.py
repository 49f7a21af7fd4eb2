"""XXH64 of short texts, against a test's own version and the one that encodes logs."""

import random

import polars as pl
import pytest

from features.encode.feature_state import stable_hash
from features.online.value_readers import UnusualError
from features.online.xxh64 import MAX_BYTES, xxh64
from tests.factories.support import xxh64 as other_xxh64


def test_texts_of_every_length_have_the_hash_of_the_specification() -> None:
    source = random.Random(0)
    texts = ["".join(source.choices("ab0é\x00\x7f", k=k % (MAX_BYTES + 1))) for k in range(600)]
    texts = [text for text in texts if len(text.encode()) <= MAX_BYTES]
    assert {len(text.encode()) for text in texts} == set(range(MAX_BYTES + 1))
    expected = [other_xxh64(text.encode()) for text in texts]
    assert xxh64(texts).tolist() == expected
    assert [xxh64([text]).item() for text in texts] == expected


def test_the_hash_is_that_of_logs() -> None:
    texts = ["", "a", "10", "-5", "4294967295", "a.example", "é" * 15, "x" * 8, "x" * MAX_BYTES]
    hashes = pl.DataFrame({"text": texts}).select(stable_hash(pl.col("text"))).to_series()
    assert xxh64(texts).tolist() == hashes.to_list()


def test_a_longer_text_is_left_to_the_batch_path() -> None:
    with pytest.raises(UnusualError):
        xxh64(["a", "x" * (MAX_BYTES + 1)])
