"""The formats in which a smaller model stores its weights: 4, 8 or 16 bits for a number, or 32.

    format   codes                                 scale
    4        two numbers in a byte, each -7 ... 7   one for each row
    8        int8, -127 ... 127                     one for each row
    16       bfloat16                               none
    "fp16"   float16, for exported tables only      none
    32       float32                                none

A number is its code times the scale of its row (symmetric quantisation). The scale is the largest
magnitude of the row divided by the largest code, rounded up to a bfloat16. The product of a code
and a bfloat16 is exact in float32, so every machine decodes the same numbers. The error of a number
is at most half a scale.

Shapes: R rows of D numbers, C = codes of a row: ceil(D / 2) for 4 bits, otherwise D.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding

from common.numbers import ceil_div

Bits = Literal[4, 8, 16, 32]
BITS: dict[str, Bits] = {"4": 4, "8": 8, "16": 16, "32": 32}
Format = Bits | Literal["fp16"]
CODE_DTYPE: dict[Format, torch.dtype] = {
    4: torch.uint8,
    8: torch.int8,
    16: torch.bfloat16,
    "fp16": torch.float16,
    32: torch.float32,
}
MAX_CODE: dict[Format, int] = {4: 7, 8: 127}
LOW_BITS_OF_FLOAT32 = 0xFFFF  # those that a bfloat16 does not have
NIBBLE = 0xF
# The two codes in each byte, (256, 2), float32.
CODES_OF_BYTE = torch.stack(
    [torch.arange(256) & NIBBLE, torch.arange(256) >> 4], dim=1
).float() - float(MAX_CODE[4])


class Encoded(NamedTuple):
    """R rows in a format.

    Attributes:
        codes: (R, C), of the format's dtype.
        scale: (R,) bfloat16; None if the format has no scale.
    """

    codes: Tensor
    scale: Tensor | None


def has_scale(form: Format) -> bool:
    """Return whether each row has a scale."""
    return form in MAX_CODE


def codes_per_row(dim: int, form: Format) -> int:
    """Return C, the number of codes of a row of `dim` numbers."""
    return ceil_div(dim, 2) if form == 4 else dim


def encode(rows_RD: Tensor, form: Format) -> Encoded:
    """Encode finite float32 rows."""
    if not has_scale(form):
        return Encoded(rows_RD.to(CODE_DTYPE[form]), None)
    scale_R = _rounded_up(rows_RD.abs().amax(dim=1) / MAX_CODE[form])
    divisor_R = scale_R.float().masked_fill(scale_R == 0, 1)
    codes_RD = (rows_RD / divisor_R.unsqueeze(1)).round()
    codes_RD = codes_RD.clamp(-MAX_CODE[form], MAX_CODE[form]).to(torch.int8)
    return Encoded(_pack(codes_RD) if form == 4 else codes_RD, scale_R)


def decode(encoded: Encoded, dim: int) -> Tensor:
    """Return the rows of encoded ones, (R, D), float32."""
    codes, scale_R = encoded
    if scale_R is None:
        return codes.float()
    if codes.dtype == torch.uint8:
        codes = embedding(codes.int(), CODES_OF_BYTE).flatten(1)[:, :dim]
    return codes.float() * scale_R.float().unsqueeze(1)


def fault_in(encoded: Encoded, dim: int) -> str | None:
    """Return what is wrong with rows from a file that `encode` cannot have written, or None."""
    codes, scale_R = encoded
    if scale_R is None:
        return None if bool(codes.isfinite().all()) else "a number is NaN or infinite"
    if not bool((scale_R.isfinite() & (scale_R >= 0)).all()):
        return "a scale is negative, NaN or infinite"
    if codes.dtype == torch.int8:
        return "a code is -128" if bool((codes == -128).any()) else None
    halves = _unpack(codes)
    if bool((halves > MAX_CODE[4]).any()):
        return f"a code is above {MAX_CODE[4]}"
    return "a code behind the last number is not 0" if bool(halves[:, dim:].any()) else None


def _rounded_up(values_R: Tensor) -> Tensor:
    """Return the smallest bfloat16 numbers that are not below float32 numbers of at least 0."""
    bits_R = values_R.contiguous().view(torch.int32)
    return ((bits_R + LOW_BITS_OF_FLOAT32) & ~LOW_BITS_OF_FLOAT32).view(torch.float32).bfloat16()


def _pack(codes_RD: Tensor) -> Tensor:
    """Put two codes into each byte, the first into the lower half; -7 is stored as 0."""
    shifted = (codes_RD + MAX_CODE[4]).to(torch.uint8)
    shifted = torch.nn.functional.pad(
        shifted, (0, shifted.shape[1] % 2), value=MAX_CODE[4]
    )  # a code 0
    return shifted[:, 0::2] | (shifted[:, 1::2] << 4)


def _unpack(bytes_RC: Tensor) -> Tensor:
    """Undo `_pack`, int8 (R, 2 C)."""
    halves = torch.stack([bytes_RC & NIBBLE, bytes_RC >> 4], dim=2)
    return halves.flatten(1).to(torch.int8) - MAX_CODE[4]
