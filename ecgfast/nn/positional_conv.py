"""Convolutional position embedding."""

import math

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm


def positional_conv(x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
    """`x + GELU(conv(x))` over the tokens, of the same length.

    Args:
        x: [B, N, E].
        weight: [E, E / groups, K]; K // 2 zeros are put at each end, and for an even K the last
            output is cut.
        bias: [E].
        groups: groups of the convolution.
    """
    kernel = weight.shape[-1]
    y = F.conv1d(x.transpose(1, 2), weight, bias, padding=kernel // 2, groups=groups)
    return x + F.gelu(y[..., : x.shape[1]].transpose(1, 2))


class PositionalConv(nn.Module):
    """Position embedding by a grouped convolution, weight-normalised for each kernel position."""

    def __init__(self, width: int, kernel: int, groups: int) -> None:
        super().__init__()
        conv = nn.Conv1d(width, width, kernel, groups=groups)
        nn.init.normal_(conv.weight, std=math.sqrt(4 / (kernel * width)))
        nn.init.zeros_(conv.bias)
        self.conv = weight_norm(conv, dim=2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, E] -> [B, N, E]."""
        return positional_conv(x, self.conv.weight, self.conv.bias, self.conv.groups)
