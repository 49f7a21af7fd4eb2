"""Linear layers that store few bits for a weight.

The products are those of float32 numbers: a layer decodes its weights once, when it is loaded. The
inputs of a layer are never rounded, so the output of a row does not depend on other rows of the
batch.

Shapes: I inputs, O outputs.
"""

import torch
from torch import Tensor, nn

from training.models.cross import CrossMatrix
from training.models.dlrm import DLRM
from training.models.mlp import MLP
from training.models.number_formats import (
    CODE_DTYPE,
    Bits,
    Encoded,
    decode,
    encode,
    fault_in,
    has_scale,
)

# The bits of a weight of a linear layer, by those of a number of the tables.
BITS_OF_LAYERS: dict[Bits, Bits] = {4: 8, 8: 8, 16: 16, 32: 32}


class CompressedLinear(nn.Linear):
    """A linear layer with one scale for each output.

    Args:
        num_in: I.
        num_out: O.
        bits: The format of a weight: 8 or 16 bits (number_formats.py).
        has_bias: Whether there is a bias, which stays float32.

    Attributes:
        codes: (O, I).
        scale: (O,) bfloat16; None if the format has none.
        weight: The decoded weights (O, I), float32; they are not saved.
    """

    scale: Tensor | None

    def __init__(self, num_in: int, num_out: int, bits: Bits, *, has_bias: bool) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bits = num_in, num_out, bits
        codes = torch.empty(num_out, num_in, dtype=CODE_DTYPE[bits])
        self.codes = nn.Parameter(codes, requires_grad=False)
        scale = torch.empty(num_out, dtype=torch.bfloat16) if has_scale(bits) else None
        self.register_buffer("scale", scale)
        bias = nn.Parameter(torch.empty(num_out), requires_grad=False) if has_bias else None
        self.register_parameter("bias", bias)
        self.register_buffer("weight", None, persistent=False)

    @classmethod
    @torch.no_grad()
    def of(cls, layer: nn.Linear, bits: Bits) -> "CompressedLinear":
        """Compress a layer."""
        has_bias = layer.bias is not None
        compressed = cls(layer.in_features, layer.out_features, bits, has_bias=has_bias)
        codes, scale = encode(layer.weight, bits)
        compressed.codes.copy_(codes)
        if compressed.scale is not None and scale is not None:
            compressed.scale.copy_(scale)
        if has_bias:
            compressed.bias.copy_(layer.bias)
        compressed.decode_weight()
        return compressed

    def forward(self, input: Tensor) -> Tensor:
        if torch.compiler.is_exporting():  # an exported model stores the codes
            weight = decode(Encoded(self.codes, self.scale), self.in_features)
            return nn.functional.linear(input, weight, self.bias)
        return super().forward(input)

    def decode_weight(self) -> None:
        """Make `weight`, after the codes have changed."""
        self.weight = decode(Encoded(self.codes, self.scale), self.in_features)

    def fault(self) -> str | None:
        """Return what is wrong with the stored weights that `of` cannot have written, or None."""
        return fault_in(Encoded(self.codes, self.scale), self.in_features)


def compress_layers(model: DLRM, bits: Bits) -> None:
    """Replace the linear layers of a model by compressed ones.

    The last layer of the top MLP stays float32. It has one output, so it is small, and the
    recalibration changes it.
    """
    bits_of_layers = BITS_OF_LAYERS[bits]
    if bits_of_layers == 32:
        return
    last = list(model.top)[-1]
    for stack in model.modules():
        if isinstance(stack, (MLP, CrossMatrix)):
            for k, layer in enumerate(stack):
                if isinstance(layer, nn.Linear) and layer is not last:
                    stack[k] = CompressedLinear.of(layer, bits_of_layers)
