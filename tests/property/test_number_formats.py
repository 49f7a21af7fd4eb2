"""Rows that are encoded and decoded are those of a calculation number by number."""

import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.models.number_formats import (
    MAX_CODE,
    Bits,
    Encoded,
    codes_per_row,
    decode,
    encode,
    fault_in,
)

NUMBERS = st.floats(-(2.0**100), 2.0**100, width=32) | st.floats(-1, 1, width=32) | st.just(0.0)
# A scale that underflows to 0 makes a row of tiny numbers 0.
UNDERFLOW = max(MAX_CODE.values()) * 2.0**-149


def as_float32(bits: int) -> float:
    return float(struct.unpack("f", struct.pack("I", bits))[0])


def next_bfloat16(value: float) -> float:
    """Return the smallest bfloat16 that is at least a float32: a float32 whose low half is 0."""
    (bits,) = struct.unpack("I", struct.pack("f", value))
    high = bits & 0xFFFF0000
    return as_float32(high) if high == bits else as_float32(high + 0x10000)


def by_hand(row: list[float], bits: int) -> list[float]:
    """Round each number of a row to a multiple of the row's scale."""
    largest = MAX_CODE[bits]
    scale = next_bfloat16(float(np.float32(max(map(abs, row))) / np.float32(largest)))
    if not scale:
        return [0.0] * len(row)
    codes = [round(float(np.float32(number) / np.float32(scale))) for number in row]
    return [max(-largest, min(largest, code)) * scale for code in codes]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([4, 8]),
    st.integers(1, 9).flatmap(
        lambda dim: st.lists(st.lists(NUMBERS, min_size=dim, max_size=dim), max_size=5).map(
            lambda rows: (dim, rows)
        )
    ),
)
def test_integers_equal_a_calculation_by_hand(
    bits: Bits, dim_and_rows: tuple[int, list[list[float]]]
) -> None:
    dim, rows = dim_and_rows
    weight = torch.tensor(rows, dtype=torch.float32).view(-1, dim)
    encoded = encode(weight, bits)
    assert encoded.codes.shape == (len(rows), codes_per_row(dim, bits))
    assert encoded.codes.element_size() == 1
    assert fault_in(encoded, dim) is None
    decoded = decode(encoded, dim)
    assert decoded.tolist() == [by_hand(row, bits) for row in rows]
    error = (decoded.double() - weight).abs()
    assert encoded.scale is not None
    half_a_step = encoded.scale.double().unsqueeze(1) / 2 * (1 + 1e-6)
    assert bool((error <= half_a_step + UNDERFLOW).all())


@settings(max_examples=100, deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=20))
def test_bfloat16_and_float32_round_to_the_nearest_number_of_their_kind(row: list[float]) -> None:
    weight = torch.tensor([row])
    assert torch.equal(decode(encode(weight, 32), len(row)), weight)
    rounded = decode(encode(weight, 16), len(row))
    for number, found in zip(weight[0].tolist(), rounded[0].tolist(), strict=True):
        assert abs(found - number) <= abs(number) * 2**-8 + 1e-40
        (bits,) = struct.unpack("I", struct.pack("f", found))
        assert bits & 0xFFFF == 0


@pytest.mark.parametrize(
    ("codes", "scale", "fault"),
    [
        (torch.tensor([[-128, 0]], dtype=torch.int8), [1.0], "a code is -128"),
        (torch.tensor([[1, 0]], dtype=torch.int8), [-1.0], "a scale is negative"),
        (torch.tensor([[1, 0]], dtype=torch.int8), [math.inf], "a scale is negative, NaN or inf"),
        (torch.tensor([[0x7F]], dtype=torch.uint8), [1.0], "a code is above 7"),
        (torch.tensor([[1.0, math.nan]], dtype=torch.bfloat16), None, "a number is NaN"),
    ],
)
def test_codes_that_are_never_written_are_found(
    codes: torch.Tensor, scale: list[float] | None, fault: str
) -> None:
    scale_R = None if scale is None else torch.tensor(scale, dtype=torch.bfloat16)
    found = fault_in(Encoded(codes, scale_R), 2)
    assert found is not None
    assert found.startswith(fault)


def test_the_half_byte_behind_an_odd_number_of_codes_is_looked_at() -> None:
    encoded = encode(torch.ones(1, 3), 4)
    assert fault_in(encoded, 3) is None
    encoded.codes[0, 1] += 1 << 4
    assert fault_in(encoded, 3) == "a code behind the last number is not 0"
